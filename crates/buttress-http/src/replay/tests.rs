use super::*;
use http::HeaderMap;
use http_body_util::{BodyExt, Empty, Full, channel::Channel};
use std::{convert::Infallible, task::Waker};

type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

struct Chunks(std::vec::IntoIter<Result<Frame<Bytes>, BoxError>>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.next())
    }
}

fn chunks(texts: &[&'static str]) -> Chunks {
    let frames: Frames = texts.iter().map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes())))).collect();
    Chunks(frames.into_iter())
}

async fn text<B: Body + Unpin>(body: ReplayBody<B>) -> String
where
    B::Error: Into<BoxError>,
{
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_body_that_was_read_in_part_is_replayed_whole() {
    let (mut first, handle) = tee(chunks(&["a", "b", "c"]), 100);
    first.frame().await.unwrap().unwrap();
    let mut second = handle.replay().unwrap();
    second.frame().await.unwrap().unwrap();
    second.frame().await.unwrap().unwrap();
    assert!(first.frame().await.unwrap().is_err(), "a superseded body ends with an error");
    assert_eq!(text(handle.replay().unwrap()).await, "abc");
    assert_eq!(text(handle.replay().unwrap()).await, "abc");
}

#[tokio::test]
async fn a_body_over_the_cap_goes_on_and_is_not_repeated() {
    let (first, handle) = tee(chunks(&["aaa", "bbb", "ccc"]), 5);
    assert_eq!(text(first).await, "aaabbbccc");
    assert!(handle.replay().is_none());
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_never_at_its_end() {
    let (mut first, handle) = tee(chunks(&["aaa", "bbb", "ccc"]), 5);
    first.frame().await.unwrap().unwrap();
    assert_eq!(text(handle.replay().unwrap()).await, "aaabbbccc");
    assert!(!first.is_end_stream(), "two of three chunks are missing");
    assert!(first.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_body_of_which_nothing_was_read_is_repeated_whatever_its_size() {
    let (first, handle) = tee(chunks(&["aaa", "bbb"]), 0);
    drop(first);
    assert_eq!(text(handle.replay().unwrap()).await, "aaabbb");
    assert!(handle.replay().is_none());
}

#[tokio::test]
async fn a_body_that_failed_is_not_repeated() {
    let frames: Frames = vec![Ok(Frame::data("a".into())), Err("disk gone".into())];
    let (mut first, handle) = tee(Chunks(frames.into_iter()), 100);
    first.frame().await.unwrap().unwrap();
    assert_eq!(first.frame().await.unwrap().unwrap_err().to_string(), "disk gone");
    assert!(first.frame().await.is_none());
    assert!(handle.replay().is_none());
}

#[tokio::test]
async fn trailers_are_replayed_too() {
    let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
    let frames: Frames = vec![Ok(Frame::data("a".into())), Ok(Frame::trailers(trailers.clone()))];
    let (first, handle) = tee(Chunks(frames.into_iter()), 100);
    let check = async |body: ReplayBody<Chunks>| {
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "a");
    };
    check(first).await;
    check(handle.replay().unwrap()).await;
}

#[tokio::test]
async fn the_size_of_every_attempt_is_that_of_the_original() {
    let (mut first, handle) = tee(Full::new(Bytes::from_static(b"hello")), 100);
    assert_eq!(first.size_hint().exact(), Some(5));
    first.frame().await.unwrap().unwrap();
    assert_eq!((first.size_hint().exact(), first.is_end_stream()), (Some(0), true));
    let second = handle.replay().unwrap();
    assert_eq!((second.size_hint().exact(), second.is_end_stream()), (Some(5), false));
}

#[tokio::test]
async fn an_empty_body_costs_nothing_and_is_always_repeated() {
    let (first, handle) = tee(Empty::<Bytes>::new(), 0);
    assert!(first.is_end_stream() && matches!(handle.0, Source::Empty));
    assert!(handle.replay().unwrap().is_end_stream());
}

#[tokio::test]
async fn an_attempt_goes_on_with_a_source_that_is_still_sending() {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
    let (mut first, handle) = tee(body, 100);
    sender.send_data("a".into()).await.unwrap();
    first.frame().await.unwrap().unwrap();
    let second = handle.replay().unwrap();
    sender.send_data("b".into()).await.unwrap();
    drop(sender);
    assert_eq!(text(second).await, "ab");
}

#[tokio::test]
async fn a_body_is_untouched_until_its_latest_attempt_asks_for_a_frame() {
    let (mut first, handle) = tee(chunks(&["a", "b"]), 100);
    assert!(handle.is_untouched() && !first.is_end_stream());
    first.frame().await.unwrap().unwrap();
    assert!(!handle.is_untouched());
    let second = handle.replay().unwrap();
    assert!(first.frame().await.unwrap().is_err(), "a superseded attempt takes nothing");
    assert!(handle.is_untouched());
    assert_eq!(text(second).await, "ab");
    assert!(!handle.is_untouched());
    let (_, empty) = tee(Empty::<Bytes>::new(), 100);
    assert!(!empty.is_untouched(), "an empty body does not count as untouched");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_waits_is_woken_when_another_attempt_supersedes_it() {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(8);
    let (mut first, handle) = tee(body, 100);
    let reader = tokio::spawn(async move { first.frame().await });
    tokio::task::yield_now().await;
    let second = handle.replay().unwrap();
    let superseded =
        tokio::time::timeout(std::time::Duration::from_secs(1), reader).await.expect("the reader is woken");
    assert!(superseded.unwrap().unwrap().is_err());
    sender.send_data(Bytes::from_static(b"a")).await.unwrap();
    drop(sender);
    assert_eq!(text(second).await, "a");
}

#[tokio::test]
async fn attempts_at_once_get_every_frame_whoever_is_ahead() {
    let (mut first, handle) = tee_at_once(chunks(&["a", "b", "c"]), 100);
    first.frame().await.unwrap().unwrap();
    let mut second = handle.replay().unwrap();
    assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap(), "b");
    assert_eq!(text(handle.replay().unwrap()).await, "abc");
    assert_eq!((text(first).await, text(second).await), ("bc".to_owned(), "c".to_owned()));
}

#[tokio::test]
async fn attempts_at_once_get_the_trailers_too() {
    let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
    let frames: Frames = vec![Ok(Frame::data("a".into())), Ok(Frame::trailers(trailers.clone()))];
    let (first, handle) = tee_at_once(Chunks(frames.into_iter()), 100);
    for body in [handle.replay().unwrap(), first, handle.replay().unwrap()] {
        let collected = body.collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "a");
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_at_once_are_all_woken_for_a_frame() {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
    let (first, handle) = tee_at_once(body, 100);
    let readers = [first, handle.replay().unwrap(), handle.replay().unwrap()];
    let readers = readers.map(|body| tokio::spawn(text(body)));
    for chunk in ["a", "b", "c"] {
        tokio::task::yield_now().await;
        sender.send_data(chunk.into()).await.unwrap();
    }
    drop(sender);
    for reader in readers {
        let read = tokio::time::timeout(std::time::Duration::from_secs(1), reader).await.expect("it is woken");
        assert_eq!(read.unwrap(), "abc");
    }
}

/// hyper polls a body only while its stream has room. A source that wakes the task of such a stream
/// must not leave the others waiting.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_not_polled_does_not_hold_up_another_at_the_same_time() {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
    let (mut first, handle) = tee_at_once(body, 100);
    let second = tokio::spawn(text(handle.replay().unwrap()));
    tokio::task::yield_now().await;
    assert!(Pin::new(&mut first).poll_frame(&mut Context::from_waker(Waker::noop())).is_pending());
    sender.send_data("a".into()).await.unwrap();
    drop(sender);
    let read = tokio::time::timeout(std::time::Duration::from_secs(1), second).await.expect("it is woken");
    assert_eq!(read.unwrap(), "a");
    assert_eq!(text(first).await, "a");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_dropped_while_it_waits_leaves_the_source_to_another_at_the_same_time() {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(4);
    let (mut first, handle) = tee_at_once(body, 100);
    assert!(Pin::new(&mut first).poll_frame(&mut Context::from_waker(Waker::noop())).is_pending());
    let second = tokio::spawn(text(handle.replay().unwrap()));
    tokio::task::yield_now().await;
    drop(first);
    sender.send_data("a".into()).await.unwrap();
    drop(sender);
    let read = tokio::time::timeout(std::time::Duration::from_secs(1), second).await.expect("it is woken");
    assert_eq!(read.unwrap(), "a");
}

#[tokio::test]
async fn over_the_cap_the_attempt_that_is_ahead_goes_on_and_the_others_end_with_an_error() {
    let (mut first, handle) = tee_at_once(chunks(&["aaa", "bbb", "ccc"]), 5);
    let second = handle.replay().unwrap();
    first.frame().await.unwrap().unwrap();
    assert_eq!(text(second).await, "aaabbbccc");
    assert!(!first.is_end_stream());
    assert!(first.frame().await.unwrap().is_err());
    assert!(handle.replay().is_none());
}

#[tokio::test]
async fn a_source_that_fails_fails_every_attempt() {
    let frames: Frames = vec![Ok(Frame::data("a".into())), Err("disk gone".into())];
    let (mut first, handle) = tee_at_once(Chunks(frames.into_iter()), 100);
    let mut second = handle.replay().unwrap();
    first.frame().await.unwrap().unwrap();
    assert_eq!(first.frame().await.unwrap().unwrap_err().to_string(), "disk gone");
    assert!(second.frame().await.unwrap().is_err(), "half a body must not pass for the whole");
    assert!(handle.replay().is_none());
}

#[tokio::test]
async fn a_body_in_one_piece_is_read_by_several_attempts_at_once() {
    let (mut first, handle) = tee_at_once(Full::new(Bytes::from_static(b"hello")), 100);
    first.frame().await.unwrap().unwrap();
    let (mut second, third) = (handle.replay().unwrap(), handle.replay().unwrap());
    assert_eq!((second.size_hint().exact(), first.is_end_stream()), (Some(5), true));
    second.frame().await.unwrap().unwrap();
    assert!(second.is_end_stream());
    assert_eq!(text(third).await, "hello");
}

#[tokio::test]
async fn all_bodies_together_keep_no_more_than_their_memory() {
    static MEMORY: ReplayMemory = ReplayMemory::new(5);
    let teed = |body| teed(body, 100, &MEMORY, Readers::Latest);
    let (mut one, handle) = teed(chunks(&["aaa", "bbb"]));
    one.frame().await.unwrap().unwrap();
    assert_eq!(MEMORY.kept(), 3);
    let (mut other, other_handle) = teed(chunks(&["ccc"]));
    assert_eq!(other.frame().await.unwrap().unwrap().into_data().unwrap(), "ccc");
    assert!(other_handle.replay().is_none(), "it does not fit");
    assert_eq!(text(handle.replay().unwrap()).await, "aaabbb", "and is sent on all the same");
    assert_eq!(MEMORY.kept(), 0, "a body that did not fit keeps nothing");
    let (mut one, handle) = teed(chunks(&["aaa"]));
    one.frame().await.unwrap().unwrap();
    drop(one);
    assert_eq!(MEMORY.kept(), 3);
    drop(handle);
    assert_eq!(MEMORY.kept(), 0);
}

#[tokio::test]
async fn a_body_that_is_made_again_may_have_any_size_and_keeps_nothing() {
    let factory = BodyFactory::new(|| chunks(&["aaa", "bbb"]));
    let (mut first, handle) = made(chunks(&["aaa", "bbb"]), factory);
    assert!(handle.is_untouched());
    first.frame().await.unwrap().unwrap();
    assert!(!handle.is_untouched());
    let second = handle.replay().unwrap();
    assert!(handle.is_untouched(), "the second attempt has taken nothing");
    assert_eq!(text(second).await, "aaabbb");
    assert!(!handle.is_untouched());
    assert_eq!(text(first).await, "bbb", "the attempts are independent");
}
