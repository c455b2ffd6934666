//! The ids of a request: `x-request-id` and W3C Trace Context (`traceparent`, Level 1, section 3.2), taken over where they
//! are well formed and made where they are not.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header of the request id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header of the trace context.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest request id that is taken over.
const REQUEST_ID_MAX: usize = 128;

/// The request's own id when it has a legal one (1 to 128 visible characters, no spaces, quotes or backslashes), a new one
/// of 32 hexadecimal digits when not.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let legal = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=REQUEST_ID_MAX).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\'))
    };
    headers.get(REQUEST_ID).filter(legal).cloned().unwrap_or_else(|| {
        let mut text = [0; 32];
        write_hex(u128::from_be_bytes(random()), &mut text);
        header(&text)
    })
}

/// The `traceparent` of the answer: the caller's trace with a span of ours, or a new trace that is not sampled.
pub(super) fn traceparent(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(TRACEPARENT).map(HeaderValue::as_bytes).filter(|value| is_traceparent(value));
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    match given {
        Some(given) => {
            text[3..35].copy_from_slice(&given[3..35]);
            text[53..].copy_from_slice(&given[53..55]);
        }
        None => write_hex(u128::from_be_bytes(random()) | 1, &mut text[3..35]),
    }
    write_hex(u128::from(u64::from_be_bytes(random()) | 1), &mut text[36..52]);
    header(&text)
}

/// `version "-" trace-id "-" parent-id "-" trace-flags`, lower-case hexadecimal; ids are not all zero; version `ff` is
/// forbidden, a version over `00` may have more behind another dash.
fn is_traceparent(value: &[u8]) -> bool {
    let is_hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let not_zero = |part: &[u8]| part.iter().any(|b| *b != b'0');
    value.len() >= 55
        && (value.len() == 55 || (&value[..2] != b"00" && value[55] == b'-'))
        && (value[2], value[35], value[52]) == (b'-', b'-', b'-')
        && is_hex(&value[..2])
        && &value[..2] != b"ff"
        && is_hex(&value[3..35])
        && not_zero(&value[3..35])
        && is_hex(&value[36..52])
        && not_zero(&value[36..52])
        && is_hex(&value[53..55])
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fastrand::fill(&mut bytes);
    bytes
}

fn write_hex(mut value: u128, text: &mut [u8]) {
    for place in text.iter_mut().rev() {
        *place = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn header(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_legal_request_id_is_kept_and_another_replaced() {
        assert_eq!(request_id(&headers(REQUEST_ID, "abc-123")), "abc-123");
        for bad in ["", "with space", "quo\"te"] {
            let made = request_id(&headers(REQUEST_ID, bad));
            assert!(made.len() == 32 && made != bad, "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn a_trace_is_continued_with_a_span_of_our_own() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let answered = traceparent(&headers(TRACEPARENT, given));
        let answered = answered.to_str().expect("text");
        assert!(answered.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && answered.ends_with("-01"));
        assert_ne!(answered, given);
        assert!(is_traceparent(answered.as_bytes()));
    }

    #[test]
    fn a_broken_trace_is_not_continued() {
        for broken in [
            "",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            let answered = traceparent(&headers(TRACEPARENT, broken));
            assert!(is_traceparent(answered.as_bytes()), "{broken}");
            assert!(!answered.to_str().expect("text").contains("4bf92f35"), "{broken}");
        }
        assert!(is_traceparent(b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"));
    }
}
