//! A look at a shared library's ELF header before it is opened: the dynamic loader kills the process (SIGBUS) on a truncated
//! file and says little about one of another machine. ELF-64 object file format, "ELF header".

/// `e_machine` of this build's architecture, with its name.
const MACHINE: (u16, &str) = if cfg!(target_arch = "aarch64") { (183, "aarch64") } else { (62, "x86_64") };

/// Why a file of `length` bytes that begins with `head` cannot be a whole shared library for this machine, if so.
pub(super) fn problem(head: &[u8], length: u64) -> Option<String> {
    const SHARED_OBJECT: u16 = 3;
    if head.len() < 64 || !head.starts_with(b"\x7fELF\x02\x01") {
        return Some("is not a 64-bit ELF shared library".to_owned());
    }
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if half(18) != MACHINE.0 {
        return Some(format!("is built for another machine than {}", MACHINE.1));
    }
    if half(16) != SHARED_OBJECT {
        return Some("is not a shared library".to_owned());
    }
    // Linkers put the section headers last: a file that ends before their end was cut.
    let mut offset = [0; 8];
    offset.copy_from_slice(&head[40..48]);
    let end = u64::from_le_bytes(offset).checked_add(u64::from(half(58)) * u64::from(half(60)));
    (end.is_none_or(|end| end > length)).then(|| "is truncated".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_whole_library_from_a_cut_or_foreign_one() {
        // The running test is itself an ELF file for this machine (position independent, so "shared").
        let bytes = std::fs::read(std::env::current_exe().expect("a path")).expect("its bytes");
        let check = |head: &[u8], length: usize| problem(head, length as u64);
        assert_eq!(check(&bytes[..64], bytes.len()), None);
        assert_eq!(check(&bytes[..64], bytes.len() / 2).as_deref(), Some("is truncated"));
        assert!(check(b"#!/bin/sh", 9).is_some());
        let mut foreign = bytes[..64].to_vec();
        foreign[18] = 40;
        assert!(check(&foreign, bytes.len()).is_some_and(|problem| problem.contains("another machine")));
    }
}
