//! Times: RFC 3339, UTC, milliseconds.

/// `2026-11-24T10:56:27.123Z`. What is beyond the year 9999 is printed as its last moment.
pub fn rfc3339(millis: u64) -> String {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn times() {
        assert_eq!(super::rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(super::rfc3339(1_795_517_787_120), "2026-11-24T10:56:27.120Z");
        assert!(super::rfc3339(u64::MAX).starts_with("9999-12-30"));
    }
}
