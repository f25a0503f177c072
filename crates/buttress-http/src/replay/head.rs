use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts};
use std::cell::RefCell;

/// How many copies of headers a thread keeps to reuse their memory, and how large they may be. With
/// the fields of [`Headers`] these are 300 kB per thread at most.
const SPARE: usize = 32;
const LARGEST: usize = 8 * 1024;
const LONGEST: usize = 64;

thread_local! {
    static SPARES: RefCell<Vec<Headers>> = const { RefCell::new(Vec::new()) };
}

/// The head of a request, kept to be sent again.
///
/// Few calls are repeated, but every one is kept. A copy of a `HeaderMap` allocates twice, and once
/// more for each name and value that was made for this request. So the text of the headers is
/// copied, into memory that the thread has used before.
pub(super) struct KeptHead {
    pub(super) method: Method,
    pub(super) uri: Uri,
    version: Version,
    headers: Headers,
    extensions: Extensions,
}

#[derive(Default)]
struct Headers {
    /// Names and values, without separators.
    text: Vec<u8>,
    fields: Vec<Field>,
}

/// A header: the lengths of its parts in the text.
struct Field {
    name: usize,
    value: usize,
    is_sensitive: bool,
}

impl KeptHead {
    pub(super) fn of(head: &Parts) -> Self {
        let mut headers = Headers::empty();
        head.headers.iter().for_each(|(name, value)| headers.push(name, value));
        Self {
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            headers,
            extensions: head.extensions.clone(),
        }
    }

    /// Returns a request with this head and another header, which replaces one of that name.
    pub(super) fn request<B>(&self, body: B, (name, value): (HeaderName, HeaderValue)) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.extensions_mut() = self.extensions.clone();
        *request.headers_mut() = self.headers.to_map();
        request.headers_mut().insert(name, value);
        request
    }
}

impl Headers {
    fn empty() -> Self {
        with_spares(Vec::pop).flatten().unwrap_or_default()
    }

    fn push(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.text.extend_from_slice(name.as_ref());
        self.text.extend_from_slice(value.as_bytes());
        let (name, value_length) = (name.as_str().len(), value.len());
        self.fields.push(Field { name, value: value_length, is_sensitive: value.is_sensitive() });
    }

    fn to_map(&self) -> HeaderMap {
        // Bounded: there may be more values than a map can have names, for which it would panic.
        let mut map = HeaderMap::with_capacity(self.fields.len().min(LONGEST) + 1);
        let mut rest = &*self.text;
        for field in &self.fields {
            let (name, after) = rest.split_at(field.name);
            let (value, after) = after.split_at(field.value);
            rest = after;
            // They were a name and a value before.
            if let (Ok(name), Ok(mut value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                value.set_sensitive(field.is_sensitive);
                map.append(name, value);
            }
        }
        map
    }
}

impl Drop for KeptHead {
    fn drop(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.text.clear();
        headers.fields.clear();
        let fields = headers.fields.capacity();
        if (1..=LONGEST).contains(&fields) && headers.text.capacity() <= LARGEST {
            with_spares(|spares| {
                if spares.len() < SPARE {
                    spares.push(headers);
                }
            });
        }
    }
}

/// Returns `None` on a thread that ends.
fn with_spares<T>(f: impl FnOnce(&mut Vec<Headers>) -> T) -> Option<T> {
    SPARES.try_with(|spares| spares.try_borrow_mut().ok().map(|mut spares| f(&mut spares))).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Route(&'static str);

    fn head() -> Parts {
        let mut secret = HeaderValue::from_static("Bearer token");
        secret.set_sensitive(true);
        let request = Request::put("http://backend/orders/7")
            .version(Version::HTTP_2)
            .header("accept", "text/plain")
            .header("cookie", "a=1")
            .header("x-retry-attempt", "4")
            .header("x-empty", "")
            .header("x-latin", HeaderValue::from_bytes(b"caf\xe9").unwrap())
            .header("authorization", secret)
            .header("cookie", "b=2")
            .extension(Route("/orders/{id}"));
        request.body(()).unwrap().into_parts().0
    }

    fn retry(number: u32) -> (HeaderName, HeaderValue) {
        (HeaderName::from_static("x-retry-attempt"), number.into())
    }

    #[test]
    fn a_kept_head_is_sent_again_whole_with_its_own_number_of_attempts() {
        let original = head();
        let kept = KeptHead::of(&original);
        for attempt in 1..3 {
            let (again, ()) = kept.request((), retry(attempt)).into_parts();
            assert_eq!((&again.method, &again.uri, again.version), (&original.method, &original.uri, Version::HTTP_2));
            assert_eq!(again.extensions.get(), Some(&Route("/orders/{id}")));
            let mut expected = original.headers.clone();
            expected.insert("x-retry-attempt", attempt.into());
            assert_eq!(again.headers, expected);
            assert!(again.headers["authorization"].is_sensitive() && !again.headers["accept"].is_sensitive());
        }
    }

    #[test]
    fn a_header_with_more_values_than_a_map_has_room_for_names_is_sent_again() {
        let (mut head, ()) = Request::new(()).into_parts();
        (0..30_000).for_each(|_| {
            head.headers.append("cookie", HeaderValue::from_static("a=1"));
        });
        assert_eq!(KeptHead::of(&head).headers.to_map(), head.headers);
    }

    #[test]
    fn the_memory_of_headers_is_used_again_and_holds_none_of_the_last_call() {
        let first = KeptHead::of(&head());
        let place = first.headers.text.as_ptr();
        drop(first);
        let (mut other, ()) = Request::new(()).into_parts();
        other.headers.insert("accept", HeaderValue::from_static("text/html"));
        let second = KeptHead::of(&other);
        assert_eq!(second.headers.text.as_ptr(), place);
        assert_eq!(second.headers.to_map(), other.headers);
    }

    #[test]
    fn a_thread_keeps_a_bounded_number_of_copies_and_no_large_ones() {
        let spares = || with_spares(|spares| spares.len());
        let of = |name: &'static str, values: Vec<String>| {
            let (mut head, ()) = Request::new(()).into_parts();
            for value in values {
                head.headers.append(name, value.parse().unwrap());
            }
            drop(KeptHead::of(&head));
        };
        let many: Vec<_> = (0..2 * SPARE).map(|_| KeptHead::of(&head())).collect();
        drop(many);
        assert_eq!(spares(), Some(SPARE));
        with_spares(Vec::clear);
        of("cookie", vec!["a=1".into(); LONGEST + 1]);
        of("cookie", vec!["a".repeat(LARGEST + 1)]);
        assert_eq!(spares(), Some(0));
        of("cookie", vec!["a=1".into(); LONGEST]);
        assert_eq!(spares(), Some(1));
    }
}
