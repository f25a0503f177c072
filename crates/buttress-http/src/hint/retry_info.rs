use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::HeaderMap;
use prost::Message;
use std::time::Duration;

/// The longest value that is read. gRPC's default bound on all headers of a response is 8 KiB
/// (16 KiB where it warns).
const LONGEST: usize = 16 * 1024;

/// Receivers must accept values with and without padding (gRPC's `doc/PROTOCOL-HTTP2.md`).
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// `google.rpc.Status`, without the fields that are not read.
#[derive(Message)]
struct Status {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

/// `google.protobuf.Duration`.
#[derive(Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Reads the delay of a `google.rpc.RetryInfo` in `grpc-status-details-bin`: the shortest pause
/// before the next attempt.
///
/// `None` if there is none, if the header is repeated or longer than 16 KiB, or if the delay is
/// negative. No value of the header is an error.
pub(crate) fn retry_info(headers: &HeaderMap) -> Option<Duration> {
    let mut values = headers.get_all("grpc-status-details-bin").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    if value.len() > LONGEST {
        return None;
    }
    let status = Status::decode(&*BASE64.decode(value).ok()?).ok()?;
    let detail = status.details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&*detail.value).ok()?.retry_delay?;
    let nanos = u32::try_from(delay.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(delay.seconds).ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD};
    use http::HeaderValue;
    use proptest::prelude::*;

    const TYPE: &str = "type.googleapis.com/google.rpc.RetryInfo";

    fn detail(type_url: &str, value: Vec<u8>) -> Any {
        Any { type_url: type_url.to_owned(), value }
    }

    fn delay(seconds: i64, nanos: i32) -> Any {
        detail(TYPE, RetryInfo { retry_delay: Some(Delay { seconds, nanos }) }.encode_to_vec())
    }

    fn read(value: &[u8]) -> Option<Duration> {
        let value = HeaderValue::from_bytes(value).ok()?;
        retry_info(&HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status-details-bin"), value)]))
    }

    fn encoded(details: Vec<Any>) -> String {
        BASE64_STANDARD.encode(Status { details }.encode_to_vec())
    }

    #[test]
    fn the_delay_is_found_among_other_details_with_and_without_padding() {
        let details = vec![detail("type.googleapis.com/google.rpc.ErrorInfo", vec![255]), delay(2, 500_000_000)];
        let bytes = Status { details }.encode_to_vec();
        let expected = Some(Duration::from_millis(2500));
        assert_eq!(read(BASE64_STANDARD.encode(&bytes).as_bytes()), expected);
        assert_eq!(read(BASE64_STANDARD_NO_PAD.encode(&bytes).as_bytes()), expected);
    }

    #[test]
    fn the_bytes_of_googles_own_encoder_are_read() {
        // code: 8, message: "busy", details: RetryInfo { retry_delay: 1.5 s }
        let mut bytes = b"\x08\x08\x12\x04busy\x1a\x33\x0a\x28".to_vec();
        bytes.extend_from_slice(TYPE.as_bytes());
        bytes.extend_from_slice(b"\x12\x07\x0a\x05\x08\x01\x10\x80\x65");
        // 12,928 ns.
        assert_eq!(read(BASE64_STANDARD.encode(&bytes).as_bytes()), Some(Duration::new(1, 12_928)));
    }

    #[test]
    fn what_is_no_delay_is_no_hint() {
        for detail in [
            delay(-1, 0),
            delay(0, -1),
            delay(0, 1_000_000_000),
            detail(TYPE, Vec::new()),
            detail(TYPE, vec![255]),
            detail("google.rpc.RetryInfo", delay(1, 0).value),
            detail("type.googleapis.com/other.RetryInfo", delay(1, 0).value),
        ] {
            assert_eq!(read(encoded(vec![detail.clone()]).as_bytes()), None, "{detail:?}");
        }
        assert_eq!(read(encoded(vec![]).as_bytes()), None);
        assert_eq!(
            read(encoded(vec![delay(i64::MAX, 999_999_999)]).as_bytes()).map(|delay| delay.as_secs()),
            Some(i64::MAX as u64)
        );
        for nonsense in ["", "%", "AAAA,AAAA", "====", "GgA"] {
            assert_eq!(read(nonsense.as_bytes()), None, "{nonsense}");
        }
    }

    #[test]
    fn a_value_that_is_too_long_or_repeated_is_not_read() {
        let long = vec![detail("padding", vec![0; LONGEST]), delay(1, 0)];
        assert_eq!(read(encoded(long).as_bytes()), None);
        let value = HeaderValue::from_str(&encoded(vec![delay(1, 0)])).unwrap();
        let name = || http::HeaderName::from_static("grpc-status-details-bin");
        let mut headers = HeaderMap::from_iter([(name(), value.clone())]);
        assert_eq!(retry_info(&headers), Some(Duration::from_secs(1)));
        headers.append(name(), value);
        assert_eq!(retry_info(&headers), None);
    }

    proptest! {
        #[test]
        fn no_value_panics(value in prop::collection::vec(any::<u8>(), 0..200)) {
            read(&value);
            read(BASE64_STANDARD.encode(&value).as_bytes());
            read(encoded(vec![detail(TYPE, value)]).as_bytes());
        }

        #[test]
        fn every_delay_of_a_second_or_more_is_read_as_it_was_written(seconds in any::<i64>(), nanos in any::<i32>()) {
            let expected = (seconds >= 0 && (0..1_000_000_000).contains(&nanos))
                .then(|| Duration::new(seconds as u64, nanos as u32));
            prop_assert_eq!(read(encoded(vec![delay(seconds, nanos)]).as_bytes()), expected);
        }
    }
}
