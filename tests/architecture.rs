//! Reads the source and holds it against the rules of the house.
//!
//! | rule | where |
//! |---|---|
//! | module dependencies point down only: `sys ← format ← { overlay, store }`, `fuse → overlay`, `cli → all` | `src/` |
//! | the types of the FUSE protocol are named in `src/fuse/` only, and do no I/O | `src/` |
//! | `unsafe` is written in `src/sys/` only, with a SAFETY comment | `src/` |
//! | only `src/cli/` and `src/main.rs` print | `src/` |
//! | a file has at most 600 lines without its tests, a function at most 70 | `src/` |
//! | no result is thrown away with `let _ =`, no `unwrap()`, `expect(…)`, `todo!`, `unimplemented!` | `src/` without tests |
//! | a test is ignored only for what it needs, and says so | `src/` and `tests/` |
//!
//! The rules look at the text: comments and literals are blanked first, so that only code counts, and
//! items under `#[cfg(test)]` are blanked for the rules that say "without tests". Function lengths come from
//! counting braces, which is exact on what rustfmt accepts. Every rule has a test that feeds it a snippet
//! which breaks it: a rule that can't fail is not a rule.

// The helpers of a test are not seen as tests by clippy.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt;
use std::fs;
use std::path::Path;

use text::{
    blank_comments_and_literals, blank_tests, end_of_item, identifier, is_word_before, line_of,
    path_heads, words,
};

#[path = "architecture/snippets.rs"]
mod snippets;
#[path = "architecture/text.rs"]
mod text;

/// Lines of a file, its tests not counted.
const MAX_FILE_LINES: usize = 600;
/// Lines of a function, from `fn` to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;

/// A top-level module and the top-level modules that it may name.
const MODULES: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("format", &["sys"]),
    ("overlay", &["format", "sys"]),
    ("store", &["format", "sys"]),
    ("fuse", &["overlay", "format", "sys"]),
    ("oci", &[]),
    ("cli", &["fuse", "overlay", "store", "oci", "format", "sys"]),
];

/// One source file in the forms that the rules look at. All forms have the same lines.
struct Source {
    /// Relative to the crate's root, with `/`.
    path: String,
    /// As it is on disk.
    text: String,
    /// Comments and the insides of literals are blanks.
    code: String,
    /// `code`, and what is under `#[cfg(test)]` is blank too.
    production: String,
    /// How many lines are under `#[cfg(test)]`.
    test_lines: usize,
}

/// A place that breaks a rule.
#[derive(Debug, PartialEq)]
struct Violation {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let code = blank_comments_and_literals(text);
        let (production, test_lines) = blank_tests(&code);
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            production,
            test_lines,
        }
    }

    /// The top-level module that the file belongs to; `None` for `lib.rs` and `main.rs`.
    fn module(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("src/")?;
        let first = rest.split('/').next()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (name != "lib" && name != "main").then_some(name)
    }

    /// How many modules deep the file is: 0 for `lib.rs`, 1 for `sys.rs` and `sys/mod.rs`.
    fn depth(&self) -> usize {
        let rest = self.path.trim_start_matches("src/");
        let parts = rest.split('/').count();
        let is_parent = ["mod.rs", "lib.rs", "main.rs"]
            .iter()
            .any(|name| rest == *name || rest.ends_with(&format!("/{name}")));
        if is_parent { parts - 1 } else { parts }
    }

    fn violation(&self, offset: usize, what: impl Into<String>) -> Violation {
        Violation {
            path: self.path.clone(),
            line: line_of(&self.code, offset),
            what: what.into(),
        }
    }
}

/// What a rule is: a file in, the places that break it out.
type Rule = fn(&Source) -> Vec<Violation>;

/// Every top-level module that the file names, with the place.
fn named_modules(source: &Source) -> Vec<(usize, String)> {
    let code = &source.code;
    let mut named = Vec::new();
    let up = "super::".repeat(source.depth());
    for root in ["crate::", "rovl::", up.as_str()] {
        if root.is_empty() {
            continue;
        }
        for at in words(code, root) {
            if root == up && code[..at].ends_with("super::") {
                continue;
            }
            let heads = path_heads(&code[at + root.len()..]);
            named.extend(heads.into_iter().map(|head| (at, head)));
        }
    }
    named
}

fn dependencies_point_down(source: &Source) -> Vec<Violation> {
    let Some(own) = source.module() else {
        return Vec::new();
    };
    let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == own) else {
        let what = format!("module `{own}` has no place in the order of the modules");
        return vec![source.violation(0, what)];
    };
    named_modules(source)
        .into_iter()
        .filter(|(_, head)| MODULES.iter().any(|(name, _)| name == head))
        .filter(|(_, head)| head != own && !allowed.contains(&head.as_str()))
        .map(|(at, head)| source.violation(at, format!("`{own}` must not know `{head}`")))
        .collect()
}

/// The protocol is `fuse::wire`; what moves it is `fuse::channel` and its like. Nothing else knows either.
fn the_protocol_stays_in_the_adapter(source: &Source) -> Vec<Violation> {
    if source.module() == Some("fuse") {
        return Vec::new();
    }
    ["fuser", "wire::", "fuse::wire", "fuse::channel"]
        .iter()
        .flat_map(|name| words(&source.code, name).map(move |at| (at, name)))
        .map(|(at, name)| source.violation(at, format!("`{name}` outside src/fuse/")))
        .collect()
}

/// `src/fuse/wire/` is bytes in, values out: it calls nobody who could do anything.
fn the_protocol_is_pure(source: &Source) -> Vec<Violation> {
    let within = source.path == "src/fuse/wire.rs" || source.path.starts_with("src/fuse/wire/");
    if !within {
        return Vec::new();
    }
    let doers = [
        "rustix",
        "libc",
        "tracing",
        "std::fs",
        "std::io",
        "std::net",
        "std::process",
        "std::thread",
        "std::env",
        "crate::sys",
        "Overlay",
    ];
    doers
        .iter()
        .flat_map(|name| words(&source.production, name).map(move |at| (at, name)))
        .map(|(at, name)| source.violation(at, format!("`{name}` in the pure protocol")))
        .collect()
}

fn unsafe_stays_in_sys(source: &Source) -> Vec<Violation> {
    let documented = |at: usize| has_safety_comment(source, line_of(&source.code, at));
    words(&source.code, "unsafe")
        .filter_map(|at| {
            let rest = source.code[at + "unsafe".len()..].trim_start();
            if source.module() != Some("sys") {
                Some(source.violation(at, "`unsafe` outside src/sys/"))
            } else if (rest.starts_with('{') || rest.starts_with("impl")) && !documented(at) {
                Some(source.violation(at, "`unsafe` without a SAFETY comment"))
            } else {
                None
            }
        })
        .collect()
}

/// Whether a comment with `SAFETY:` stands on, or directly above, the statement that holds `line` (from 1).
fn has_safety_comment(source: &Source, line: usize) -> bool {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut at = line - 1;
    loop {
        if lines[at].contains("SAFETY:") {
            return true;
        }
        if at == 0 {
            return false;
        }
        at -= 1;
        let above = lines[at].trim();
        let is_comment = above.starts_with("//") || above.starts_with("#[");
        let ends_statement = above.is_empty() || above.ends_with([';', '{', '}']);
        if !is_comment && ends_statement && !above.contains("SAFETY:") {
            return false;
        }
    }
}

fn only_the_commands_print(source: &Source) -> Vec<Violation> {
    if source.module() == Some("cli") || source.path == "src/main.rs" {
        return Vec::new();
    }
    ["println!", "eprintln!", "print!", "eprint!", "dbg!"]
        .iter()
        .flat_map(|name| words(&source.production, name).map(move |at| (at, name)))
        .map(|(at, name)| source.violation(at, format!("`{name}` outside src/cli/")))
        .collect()
}

fn files_are_short(source: &Source) -> Vec<Violation> {
    let lines = source.text.lines().count() - source.test_lines;
    if lines <= MAX_FILE_LINES {
        return Vec::new();
    }
    let what = format!("{lines} lines without tests, at most {MAX_FILE_LINES}");
    vec![source.violation(0, what)]
}

fn functions_are_short(source: &Source) -> Vec<Violation> {
    let code = source.production.as_bytes();
    words(&source.production, "fn ")
        .filter(|at| !is_word_before(code, *at))
        .filter_map(|at| {
            let end = end_of_item(code, at);
            let lines = source.production[at..end].matches('\n').count() + 1;
            let name = identifier(source.production[at + 3..].trim_start());
            let what = format!("`{name}` has {lines} lines, at most {MAX_FUNCTION_LINES}");
            (lines > MAX_FUNCTION_LINES).then(|| source.violation(at, what))
        })
        .collect()
}

fn no_result_is_thrown_away(source: &Source) -> Vec<Violation> {
    words(&source.production, "let _")
        .filter_map(|at| {
            let statement = &source.production[at..];
            let statement = &statement[..statement.find(';').unwrap_or(statement.len())];
            let (pattern, value) = statement.split_once('=')?;
            let discards = pattern.trim() == "let _" || pattern.starts_with("let _:");
            let what = "`let _ =` on a call: name the error that is expected, return the rest";
            (discards && value.contains('(')).then(|| source.violation(at, what))
        })
        .collect()
}

fn nothing_is_left_to_do(source: &Source) -> Vec<Violation> {
    ["todo!", "unimplemented!"]
        .iter()
        .flat_map(|name| words(&source.production, name).map(move |at| (at, name)))
        .map(|(at, name)| source.violation(at, format!("`{name}`")))
        .collect()
}

fn nothing_unwraps(source: &Source) -> Vec<Violation> {
    [".unwrap()", ".expect("]
        .iter()
        .flat_map(|name| source.production.match_indices(name))
        .map(|(at, name)| source.violation(at, format!("`{name}` outside tests")))
        .collect()
}

/// `tools/test` runs the ignored tests too. What may be ignored elsewhere is what needs a privilege that a
/// plain `cargo test` lacks, and what is no test by itself; each says so.
fn ignored_tests_say_why(source: &Source) -> Vec<Violation> {
    words(&source.code, "#[ignore")
        .filter(|at| {
            let reason = source.text[at + "#[ignore".len()..].trim_start_matches([' ', '=', '"']);
            !(reason.starts_with("needs ") || reason.starts_with("a part of "))
        })
        .map(|at| source.violation(at, "an ignored test that doesn't say what it needs"))
        .collect()
}

/// The rules for `src/`, each by its name.
const RULES: &[(&str, Rule)] = &[
    ("dependencies_point_down", dependencies_point_down),
    (
        "the_protocol_stays_in_the_adapter",
        the_protocol_stays_in_the_adapter,
    ),
    ("the_protocol_is_pure", the_protocol_is_pure),
    ("unsafe_stays_in_sys", unsafe_stays_in_sys),
    ("only_the_commands_print", only_the_commands_print),
    ("files_are_short", files_are_short),
    ("functions_are_short", functions_are_short),
    ("no_result_is_thrown_away", no_result_is_thrown_away),
    ("nothing_is_left_to_do", nothing_is_left_to_do),
    ("nothing_unwraps", nothing_unwraps),
    ("ignored_tests_say_why", ignored_tests_say_why),
];

fn read_tree(root: &Path, folder: &str, into: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(root.join(folder))
        .unwrap_or_else(|e| panic!("reading {folder}: {e}"))
        .map(|entry| entry.unwrap())
        .collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            read_tree(root, &path, into);
        } else if path.ends_with(".rs") {
            into.push(Source::new(
                &path,
                &fs::read_to_string(entry.path()).unwrap(),
            ));
        }
    }
}

/// The files of a folder of this crate, without those that are modules under `#[cfg(test)]`.
fn tree(folder: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    read_tree(Path::new(env!("CARGO_MANIFEST_DIR")), folder, &mut sources);
    assert!(!sources.is_empty(), "no source under {folder}");
    let test_files: Vec<String> = sources.iter().flat_map(test_module_files).collect();
    sources.retain(|source| {
        let is_under = |file: &String| source.path.starts_with(&format!("{file}/"));
        !test_files
            .iter()
            .any(|file| source.path == format!("{file}.rs") || is_under(file))
    });
    sources
}

/// The paths, without `.rs`, of the modules that the file declares as `#[cfg(test)] mod NAME;`.
fn test_module_files(source: &Source) -> Vec<String> {
    let (folder, name) = source.path.rsplit_once('/').unwrap_or(("", &source.path));
    let home = match name {
        "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
        _ => source.path.trim_end_matches(".rs").to_owned(),
    };
    words(&source.code, "#[cfg(test)]")
        .filter_map(|at| {
            let item = source.code[at + "#[cfg(test)]".len()..].trim_start();
            let name = identifier(item.strip_prefix("mod ")?);
            let after = item["mod ".len() + name.len()..].trim_start();
            after.starts_with(';').then(|| format!("{home}/{name}"))
        })
        .collect()
}

fn assert_keeps(name: &str, rule: Rule, sources: &[Source]) {
    let broken: Vec<String> = sources
        .iter()
        .flat_map(rule)
        .map(|violation| violation.to_string())
        .collect();
    assert!(broken.is_empty(), "{name}:\n  {}", broken.join("\n  "));
}

macro_rules! the_source_keeps {
    ($($rule:ident),* $(,)?) => {
        mod the_source_keeps {
            $(#[test]
            fn $rule() {
                super::assert_keeps(stringify!($rule), super::$rule, &super::tree("src"));
            })*

            #[test]
            fn every_rule() {
                let tested = [$(stringify!($rule)),*];
                let named: Vec<&str> = super::RULES.iter().map(|(name, _)| *name).collect();
                assert_eq!(tested.as_slice(), named.as_slice());
            }
        }
    };
}

the_source_keeps!(
    dependencies_point_down,
    the_protocol_stays_in_the_adapter,
    the_protocol_is_pure,
    unsafe_stays_in_sys,
    only_the_commands_print,
    files_are_short,
    functions_are_short,
    no_result_is_thrown_away,
    nothing_is_left_to_do,
    nothing_unwraps,
    ignored_tests_say_why,
);

#[test]
fn ignored_integration_tests_say_why() {
    assert_keeps(
        "ignored_tests_say_why",
        ignored_tests_say_why,
        &tree("tests"),
    );
}
