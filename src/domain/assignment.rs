//! Assignment: which arm a customer belongs to. A salted hash, so that it is sticky without a store, the same on every replica,
//! and independent of any other assignment with another salt.

use sha2::{Digest, Sha256};

/// The ticket of a customer: the first 64 bits of SHA-256 over salt and id.
pub fn ticket(salt: &str, customer_id: &str) -> u64 {
    ticket_of(&[salt], customer_id)
}

/// The same with a salt that is put together from `parts`, without putting it together.
pub fn ticket_of(parts: &[&str], customer_id: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(parts.iter().map(|part| part.len() as u64).sum::<u64>().to_le_bytes());
    parts.iter().for_each(|part| hash.update(part));
    hash.update(customer_id);
    let digest: [u8; 32] = hash.finalize().into();
    let (first, _) = digest.split_first_chunk::<8>().expect("32 is more than 8");
    u64::from_be_bytes(*first)
}

/// The place of a ticket within 0 to 1 (excluded), evenly spread, by its high 53 bits. A customer is in a share when its place is
/// below it, so a share that grows keeps the customers that it had.
pub fn place(ticket: u64) -> f64 {
    (ticket >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::ticket;

    fn place(salt: &str, customer_id: &str) -> f64 {
        super::place(ticket(salt, customer_id))
    }

    #[test]
    fn shares_are_kept_and_salts_are_independent() {
        let ids: Vec<String> = (0..20_000).map(|number| format!("C-{number}")).collect();
        let share = |salt: &str, share: f64| ids.iter().filter(|id| place(salt, id) < share).count() as f64 / 20_000.0;
        for expected in [0.01, 0.05, 0.25, 0.5] {
            // Four standard deviations of a binomial share.
            let sd = (expected * (1.0 - expected) / 20_000.0_f64).sqrt();
            assert!((share("a", expected) - expected).abs() < 4.0 * sd);
        }
        let both = ids.iter().filter(|id| place("a", id) < 0.5 && place("b", id) < 0.5).count() as f64 / 20_000.0;
        assert!((both - 0.25).abs() < 4.0 * (0.25_f64 * 0.75 / 20_000.0).sqrt(), "{both}");
        assert_eq!(place("salt", "C-1"), place("salt", "C-1"));
        assert_ne!(place("ab", "c"), place("a", "bc"));
        assert_eq!(super::ticket_of(&["a", "", "b"], "c"), super::ticket("ab", "c"));
    }
}
