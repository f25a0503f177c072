use super::*;
use proptest::prelude::*;

fn headers<const N: usize>(fields: [(&HeaderName, &[u8]); N]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap()
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_grpc_timeout_has_up_to_eight_digits_and_a_unit() {
    for (value, time) in [
        ("1n", Duration::from_nanos(1)),
        ("20u", Duration::from_micros(20)),
        ("300m", 300 * MS),
        ("00000005S", 5 * SECOND),
        ("2M", 120 * SECOND),
        ("3H", 3 * 3600 * SECOND),
        ("0n", Duration::ZERO),
        ("99999999H", Duration::from_secs(99_999_999 * 3600)),
    ] {
        assert_eq!(read(&headers([(&GRPC, value.as_bytes())])), Some(time), "{value}");
    }
}

#[test]
fn hostile_headers_are_as_none() {
    let huge = "1".repeat(100_000);
    for value in
        ["", "n", "1", "1s", "1h", "-1m", "+1m", "1.5S", " 1m", "1m ", "1 m", "123456789m", "1mm", "0x1m", &huge]
    {
        assert_eq!(read(&headers([(&GRPC, value.as_bytes())])), None, "{value:.20}");
    }
    for value in ["", "-1", "+1", "1.5", "1m", "1 000", "99999999999999999999999", "soon", &huge] {
        assert_eq!(read(&headers([(&HTTP, value.as_bytes())])), None, "{value:.20}");
        assert_eq!(read(&headers([(&ENVOY, value.as_bytes())])), None, "{value:.20}");
    }
    assert_eq!(read(&headers([(&GRPC, b"1m"), (&GRPC, b"1m")])), None, "twice");
    assert_eq!(read(&headers([(&HTTP, b"\xff\xfe")])), None);
    assert_eq!(read(&headers([(&HTTP, b"18446744073709551615")])), Some(Duration::from_millis(u64::MAX)));
}

#[test]
fn the_shortest_of_the_headers_counts_and_envoys_zero_is_none() {
    let all = |grpc: &str, http: &str, envoy: &str| {
        read(&headers([(&GRPC, grpc.as_bytes()), (&HTTP, http.as_bytes()), (&ENVOY, envoy.as_bytes())]))
    };
    assert_eq!(all("3m", "2", "1"), Some(MS));
    assert_eq!(all("3m", "2", "0"), Some(2 * MS));
    assert_eq!(all("1m", "2", "bad"), Some(MS));
    assert_eq!(all("bad", "0", "5"), Some(Duration::ZERO), "ours says that no time is left");
    assert_eq!(read(&HeaderMap::new()), None);
}

#[test]
fn a_grpc_timeout_is_written_in_the_finest_unit_that_fits_rounded_up() {
    for (left, value) in [
        (Duration::ZERO, "0n"),
        (Duration::from_nanos(99_999_999), "99999999n"),
        (Duration::from_nanos(100_000_000), "100000u"),
        (Duration::from_nanos(100_000_001), "100001u"),
        (2 * SECOND, "2000000u"),
        (100 * SECOND, "100000m"),
        (100 * SECOND + Duration::from_nanos(1), "100001m"),
        (100_000 * SECOND, "100000S"),
        (Duration::from_secs(100_000_000), "1666667M"),
        (Duration::from_secs(99_999_999 * 60 + 1), "1666667H"),
        (Duration::MAX, "99999999H"),
    ] {
        assert_eq!(encode_grpc(left), value);
    }
}

#[test]
fn milliseconds_are_written_rounded_up() {
    for (left, value) in [
        (Duration::ZERO, "0"),
        (Duration::from_nanos(1), "1"),
        (1500 * MS, "1500"),
        (1500 * MS + Duration::from_nanos(1), "1501"),
        (Duration::MAX, "18446744073709551615"),
    ] {
        assert_eq!(encode_millis(left), value);
    }
}

#[test]
fn the_header_of_the_protocol_is_written_and_what_the_others_said_is_removed() {
    let mut stale = headers([(&GRPC, b"9S"), (&HTTP, b"9000"), (&ENVOY, b"9000"), (&GRPC, b"8S")]);
    write(&mut stale, SECOND, true);
    assert_eq!((stale.len(), text(&stale[GRPC])), (1, "1000000u"));
    write(&mut stale, SECOND, false);
    assert_eq!((stale.len(), text(&stale[HTTP])), (1, "1000"));
}

#[test]
fn what_is_left_shortens_a_header_and_adds_and_lengthens_none() {
    let mut none = HeaderMap::new();
    shorten(&mut none, SECOND);
    assert!(none.is_empty());
    let mut both = headers([(&GRPC, b"2S"), (&HTTP, b"500")]);
    shorten(&mut both, SECOND);
    assert_eq!((text(&both[GRPC]), text(&both[HTTP])), ("1000000u", "500"));
    let mut unreadable = headers([(&GRPC, b"soon")]);
    shorten(&mut unreadable, SECOND);
    assert_eq!(text(&unreadable[GRPC]), "soon");
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4)) {
        let mut headers = HeaderMap::new();
        for (n, value) in values.iter().enumerate() {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append([GRPC, HTTP, ENVOY][n % 3].clone(), value);
            }
        }
        let _time = read(&headers);
        shorten(&mut headers, SECOND);
    }

    #[test]
    fn texts_like_times_are_read_as_their_number_and_unit(number in 0..=99_999_999u64, unit in "[numSMHsh]", extra in "[0-9]{0,3}") {
        let value = format!("{extra}{number}{unit}");
        let read = read(&headers([(&GRPC, value.as_bytes())]));
        let digits = &value[..value.len() - 1];
        let nanos = UNITS.iter().find(|(known, _)| [*known] == unit.as_bytes()).map(|(_, nanos)| *nanos);
        let expected = nanos.filter(|_| digits.len() <= 8).map(|nanos| u128::from(digits.parse::<u64>().unwrap()) * u128::from(nanos));
        prop_assert_eq!(read.map(|time| time.as_nanos()), expected);
    }

    /// What a server reads is what the client wrote, rounded up by less than one unit, which is at
    /// most a hundred-thousandth of the time.
    #[test]
    fn times_are_read_as_they_were_written_rounded_up(seconds in prop_oneof![0..3u64, 0..1_000_000_000u64, 0..359_999_996_400u64], nanos in 0..1_000_000_000u32) {
        let left = Duration::new(seconds, nanos);
        let grpc = read(&headers([(&GRPC, encode_grpc(left).as_bytes())])).unwrap();
        prop_assert!(grpc >= left && (grpc - left).as_nanos() <= left.as_nanos() / 100_000);
        let http = read(&headers([(&HTTP, encode_millis(left).as_bytes())])).unwrap();
        prop_assert!(http >= left && http - left < MS);
    }
}
