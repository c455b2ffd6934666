//! Holds the house to its plan: reads the tables of ARCHITECTURE.md and fails on an import that breaks the floors, a foreign
//! crate outside its room, a file without a head, and a file that has outgrown its room. The threat model in SECURITY.md is held
//! to its tests: each line names some, and they are there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a file may have before its tests.
const LINES_MAX: usize = 400;

struct Source {
    path: String,
    module: String,
    text: String,
}

fn sources() -> Vec<Source> {
    sources_of("src")
}

fn sources_of(root: &str) -> Vec<Source> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(Path::new(root), &mut paths);
    paths.sort();
    let source = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("UTF-8");
        let path = path.to_string_lossy().into_owned();
        let module = path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default().to_owned();
        Source { path, module, text }
    };
    paths.into_iter().map(source).collect()
}

/// The rows of the table in ARCHITECTURE.md whose head begins with `head`: cells without back quotes.
fn table(head: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string("ARCHITECTURE.md").expect("ARCHITECTURE.md");
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip_while(|line| !line.starts_with(&format!("| {head} |")))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "ARCHITECTURE.md has no table \"{head}\"");
    rows
}

/// A file up to its tests.
fn before_tests(text: &str) -> &str {
    let opens = |rest: &str| rest.lines().next().is_some_and(|line| line.ends_with("mod tests {"));
    let mut tests = text.match_indices("\n#[cfg(test)]\n").filter(|(at, head)| opens(&text[at + head.len()..]));
    tests.next().map_or(text, |(at, _)| &text[..at])
}

/// The code of a file: without its tests and without comments, so that neither counts as an import.
fn code(text: &str) -> String {
    before_tests(text).lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The words that follow `before` in `code`, such as the module in `crate::module`; with `{a, b}` each of them.
fn words_after(code: &str, before: &str) -> Vec<String> {
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut words = Vec::new();
    for (at, _) in code.match_indices(before) {
        let rest = &code[at + before.len()..];
        match rest.strip_prefix('{').and_then(|list| list.split_once('}')) {
            Some((list, _)) => words.extend(list.split(',').map(word)),
            None => words.push(word(rest)),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn imports_only_go_down_the_floors() {
    let mut floors = BTreeMap::new();
    for row in table("floor") {
        let floor: u32 = row[0].parse().expect("a floor is a number");
        row[1].split_whitespace().for_each(|module| assert!(floors.insert(module.to_owned(), floor).is_none()));
    }
    let top = *floors.values().max().expect("floors");
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.module != "lib") {
        let Some(floor) = floors.get(&source.module) else {
            broken.push(format!("{}: the module {} is on no floor", source.path, source.module));
            continue;
        };
        let code = code(&source.text);
        for import in words_after(&code, "crate::").into_iter().chain(words_after(&code, "mainstay::")) {
            // The top is one room: main, cli, app and config see each other and are seen by nobody.
            let down = floors.get(&import).is_some_and(|below| below < floor || *floor == top);
            if import != source.module && !down {
                broken.push(format!("{}: {} (floor {floor}) must not import {import}", source.path, source.module));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn foreign_crates_stay_in_their_rooms() {
    let mut broken = Vec::new();
    for row in table("crate") {
        let rooms: Vec<&str> = row[1].split_whitespace().collect();
        for source in sources() {
            let inside = rooms.iter().any(|room| source.path.starts_with(&format!("src/{room}")));
            let code = code(&source.text);
            for name in row[0].split_whitespace().map(|name| name.replace('-', "_")) {
                // `name::` that is not the end of a longer path or word.
                let used = code.match_indices(&format!("{name}::")).any(|(at, _)| {
                    !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                        && (!code[..at].ends_with("::") || code[..at].ends_with(" ::"))
                });
                if used && !inside {
                    broken.push(format!("{}: {name} belongs into {}", source.path, row[1]));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_says_what_lives_there_and_is_one_room() {
    let mut broken = Vec::new();
    for source in sources() {
        let head = source.text.lines().take_while(|line| line.starts_with("//!")).count();
        if !(1..=5).contains(&head) {
            broken.push(format!("{}: expected a head of 1 to 5 lines of //!, found {head}", source.path));
        }
        let lines = before_tests(&source.text).lines().count();
        if lines > LINES_MAX {
            broken.push(format!("{}: {lines} lines before its tests; is it one room or two?", source.path));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_tree_of_the_plan_is_the_tree_that_stands() {
    let plan = fs::read_to_string("ARCHITECTURE.md").expect("ARCHITECTURE.md");
    let missing: Vec<String> = sources()
        .into_iter()
        .map(|source| source.path)
        .filter(|path| !plan.contains(path.trim_start_matches("src/")))
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not name {}", missing.join(", "));
}

#[test]
fn every_line_of_the_threat_model_names_tests_that_are_there() {
    let found: Vec<Source> = ["src", "tests"].into_iter().flat_map(sources_of).collect();
    let is_test = |name: &str| {
        let function = format!("fn {name}(");
        found.iter().any(|source| {
            source.text.split("\n\n").any(|part| {
                part.contains(&function)
                    && (part.contains("#[test]") || part.contains("#[tokio::test]") || part.contains("#[test_case"))
            })
        })
    };
    let text = fs::read_to_string("SECURITY.md").expect("SECURITY.md");
    let (mut lines, mut broken) = (0, Vec::new());
    let mut inside = false;
    for line in text.lines() {
        inside = (inside || line.ends_with("| held by |")) && line.starts_with('|');
        if !inside || line.ends_with("| held by |") || line.starts_with("|---") {
            continue;
        }
        lines += 1;
        let last = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let named: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            broken.push(format!("no test holds: {line}"));
        }
        broken.extend(named.iter().filter(|name| !is_test(name)).map(|name| format!("{name} is no test: {line}")));
    }
    assert!(lines > 40, "SECURITY.md has {lines} lines of a threat model");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
