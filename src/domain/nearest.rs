//! The nearest known word to a mistyped one: what turns "unknown" into "did you mean".

/// The candidate that `word` most probably meant, if any is near enough: equal but for case, or at most a third of its
/// characters away in the optimal-string-alignment distance (insertions, deletions, substitutions, neighbours swapped).
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    // The distance is quadratic, and a hostile word may be as long as a body.
    if word.len() > 128 {
        return None;
    }
    let folded = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count().max(word.chars().count()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_what_was_meant_and_nothing_else() {
        let names = ["tenure", "Contract", "TotalCharges", "MonthlyCharges"];
        assert_eq!(nearest("tenur", names), Some("tenure"));
        assert_eq!(nearest("contract", names), Some("Contract"));
        assert_eq!(nearest("totalcharge", names), Some("TotalCharges"));
        assert_eq!(nearest("zip", names), None);
        assert_eq!(nearest("", names), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), names), None);
    }
}
