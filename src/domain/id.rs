//! Decision ids: UUID version 7 (RFC 9562, section 5.7), so that they sort by time. The clock and the randomness are given.

use uuid::Uuid;

/// The id of one decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DecisionId(Uuid);

impl DecisionId {
    /// The id for a decision at `unix_ms` milliseconds since 1970, with 74 of the 80 `random` bits in it.
    pub fn new(unix_ms: u64, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid())
    }

    /// Its 16 bytes, which sort as the ids do.
    pub fn bytes(&self) -> [u8; 16] {
        *self.0.as_bytes()
    }

    /// The id with these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The id that `text` is, in any of the usual forms of a UUID.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// Its usual text, 36 characters, written into `buffer`.
    pub fn encode<'b>(&self, buffer: &'b mut [u8; 36]) -> &'b str {
        self.0.hyphenated().encode_lower(buffer)
    }
}

impl std::fmt::Display for DecisionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::DecisionId;

    #[test]
    fn is_a_version_7_uuid_that_sorts_by_time() {
        let early = DecisionId::new(1_763_000_000_000, [0xff; 10]);
        let late = DecisionId::new(1_763_000_000_001, [0; 10]);
        assert_eq!(early.0.get_version_num(), 7);
        assert_eq!(early.0.get_variant(), uuid::Variant::RFC4122);
        assert!(early < late && early.to_string() < late.to_string());
    }
}
