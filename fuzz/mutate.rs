//! Mutants of texts: words and numbers taken out, doubled, changed places or put in, so that what comes is still nearly JSON or TOML.

/// What hides at the ends of ranges and of parsers.
const ODD: [&str; 24] = [
    "0",
    "-0",
    "1",
    "-1",
    "0.5",
    "1e308",
    "1e-308",
    "9007199254740993",
    "18446744073709551615",
    "NaN",
    "inf",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "\"\"",
    "\"\\ud800\"",
    "\"\u{0}\"",
    "~1",
    "\"(0, 1]\"",
    ",",
    ":",
    "=",
];

/// Changes the first `size` bytes of `data`, which has room for `max`: how many there are now. The same `seed` does the same.
pub(crate) fn words(data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    let mut random = fastrand::Rng::with_seed(u64::from(seed));
    let text = data[..size].to_vec();
    let mut parts = split(&text);
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..parts.len().max(1));
        let other = parts.get(random.usize(..parts.len().max(1))).copied();
        let odd = ODD[random.usize(..ODD.len())].as_bytes();
        match (random.u8(..6), parts.is_empty(), other) {
            (0, false, _) => drop(parts.remove(at)),
            (1, false, Some(other)) => parts.insert(at, other),
            (2, false, Some(other)) => parts[at] = other,
            (3, false, _) => parts[at] = odd,
            (4, false, _) => {
                let end = (at + random.usize(1..40)).min(parts.len());
                let run = parts[at..end].to_vec();
                let to = random.usize(..parts.len());
                parts.splice(to..to, run);
            }
            (5, false, _) => drop(parts.drain(at..(at + random.usize(1..12)).min(parts.len()))),
            _ => parts.push(odd),
        }
    }
    let changed = parts.concat();
    let size = changed.len().min(max).min(data.len());
    data[..size].copy_from_slice(&changed[..size]);
    size
}

/// `text` as words, numbers, runs of spaces, and every other byte by itself.
fn split(text: &[u8]) -> Vec<&[u8]> {
    let kind = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => 0,
        b'0'..=b'9' | b'.' | b'+' | b'-' => 1,
        b' ' | b'\n' => 2,
        other => 256 + usize::from(other),
    };
    text.chunk_by(|left, right| kind(*left) == kind(*right) && kind(*left) < 256).collect()
}
