//! Runs each target on the files of its corpus, and on random changes of them.

use proptest::prelude::*;
use std::{fs, path::PathBuf};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no corpus of {target}");
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Lines that matter to the layers, to be mixed with those of the corpus.
const LINES: [&str; 14] = [
    "retry-after: 99999999999999999999",
    "retry-after: Sun, 06 Nov 1994 08:49:37 GMT",
    "date: Sun, 06 Nov 1994 08:49:37 GMT",
    "grpc-status: 14",
    "grpc-status: 8",
    "grpc-retry-pushback-ms: -1",
    "grpc-retry-pushback-ms: 18446744073709551615",
    "x-buttress-rejected: open",
    "x-priority: 0;127",
    "content-type: application/grpc",
    "ratelimit: \"a\";r=0;t=9",
    "transfer-encoding: chunked",
    "idempotency-key: \u{e9}",
    "",
];

#[derive(Clone, Debug)]
enum Change {
    Insert(usize, &'static str),
    Remove(usize),
    Set(usize, u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), prop::sample::select(&LINES[..])).prop_map(|(at, line)| Change::Insert(at, line)),
        any::<usize>().prop_map(Change::Remove),
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
    ]
}

fn changed(mut data: Vec<u8>, changes: Vec<Change>) -> Vec<u8> {
    for change in changes {
        match change {
            Change::Insert(at, line) => {
                let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
                lines.insert(at % (lines.len() + 1), line.as_bytes());
                data = lines.join(&b'\n');
            }
            Change::Remove(at) if !data.is_empty() => drop(data.remove(at % data.len())),
            Change::Set(at, byte) if !data.is_empty() => {
                let at = at % data.len();
                data[at] = byte;
            }
            _ => {}
        }
    }
    data
}

fn survives(target: &str, run: fn(&[u8]), cases: u32) {
    let corpus = corpus(target);
    corpus.iter().for_each(|data| run(data));
    let input = (prop::sample::select(corpus), prop::collection::vec(change(), 0..8));
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let done = runner.run(&input, |(data, changes)| {
        run(&changed(data, changes));
        Ok(())
    });
    done.unwrap();
}

#[test]
fn any_request_gets_an_answer() {
    survives("request", buttress_hostile::request, 500);
}

#[test]
fn any_response_ends_a_call() {
    survives("response", buttress_hostile::response, 500);
}

#[test]
fn any_event_is_read_or_refused() {
    survives("event", buttress_hostile::event, 2_000);
}

#[test]
fn any_priority_is_read_or_refused() {
    survives("priority", buttress_hostile::priority, 2_000);
}
