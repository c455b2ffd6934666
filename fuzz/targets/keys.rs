//! The file of API keys, which people edit and orchestrators mount.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use mainstay::access::Editor;

/// A directory of this process.
static DIRECTORY: LazyLock<tempfile::TempDir> = LazyLock::new(super::directory);

pub(super) fn run(input: &[u8]) {
    let path = DIRECTORY.path().join("keys.json");
    write(&path, input);
    let keys = match Editor::open(&path) {
        Ok(editor) => editor.keys().to_vec(),
        Err(error) => {
            let told = error.to_string();
            assert!(told.contains("keys.json"), "it does not say which file: {told}");
            assert!(!quotes(&told, input), "a hash of the file is quoted: {told}");
            return;
        }
    };
    let written = serde_json::to_vec(&serde_json::json!({ "keys": keys })).expect("keys can be written");
    write(&path, &written);
    let again = Editor::open(&path).unwrap_or_else(|error| panic!("what was written is refused: {error}"));
    assert_eq!(again.keys(), keys, "the keys are those that were written");
    let mut ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), keys.len(), "an id finds one key");
}

fn write(path: &PathBuf, text: &[u8]) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a mode");
}

/// Whether `told` has 32 hexadecimal digits in a row of `input`.
fn quotes(told: &str, input: &[u8]) -> bool {
    told.as_bytes()
        .windows(32)
        .any(|piece| piece.iter().all(u8::is_ascii_hexdigit) && input.windows(32).any(|own| own == piece))
}
