//! Every rule is fed code that breaks it, and code that looks like it but doesn't.

use super::*;

/// The lines where `rule` finds `text`, as the file `path`, to be broken.
fn lines(rule: Rule, path: &str, text: &str) -> Vec<usize> {
    let mut lines: Vec<usize> = rule(&Source::new(path, text))
        .into_iter()
        .map(|violation| violation.line)
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
fn dependencies_upwards_are_found() {
    let rule = dependencies_point_down;
    let uses_fuse = "use std::fs;\nuse crate::fuse::Session;\n";
    assert_eq!(lines(rule, "src/overlay/mod.rs", uses_fuse), [2]);
    assert_eq!(lines(rule, "src/cli/mount.rs", uses_fuse), [0; 0]);
    let group = "use crate::{format::Name, store::{Id, layout}, sys};\n";
    assert_eq!(lines(rule, "src/overlay/open.rs", group), [1]);
    assert_eq!(lines(rule, "src/sys/fd.rs", group), [1, 1]);
    let inline = "fn f() {\n    crate::overlay::open();\n}\n";
    assert_eq!(lines(rule, "src/store/gc.rs", inline), [2]);
    assert_eq!(lines(rule, "src/format.rs", inline), [2]);
    assert_eq!(lines(rule, "src/fuse/mod.rs", inline), [0; 0]);
    let full = "use rovl::cli;\n";
    assert_eq!(lines(rule, "src/sys.rs", full), [1]);
}

#[test]
fn dependencies_through_super_are_found() {
    let rule = dependencies_point_down;
    let two_up = "use super::super::store::Id;\n";
    assert_eq!(lines(rule, "src/overlay/node.rs", two_up), [1]);
    assert_eq!(lines(rule, "src/overlay/deep/node.rs", two_up), [0; 0]);
    assert_eq!(lines(rule, "src/overlay/mod.rs", "use super::fuse;\n"), [1]);
    assert_eq!(
        lines(rule, "src/overlay/node.rs", "use super::fuse;\n"),
        [0; 0]
    );
}

#[test]
fn a_module_without_a_place_is_found() {
    assert_eq!(
        lines(dependencies_point_down, "src/helpers.rs", "fn f() {}\n"),
        [1]
    );
    assert_eq!(
        lines(dependencies_point_down, "src/main.rs", "use rovl::cli;\n"),
        [0; 0]
    );
}

#[test]
fn the_protocol_outside_the_adapter_is_found() {
    let text = "// wire::Op in a comment\nuse crate::fuse::wire;\nlet s = \"fuser\"; let fusers = 1;\nuse fuser::Op;\n";
    assert_eq!(
        lines(
            the_protocol_stays_in_the_adapter,
            "src/overlay/mod.rs",
            text
        ),
        [2, 4]
    );
    assert_eq!(
        lines(the_protocol_stays_in_the_adapter, "src/fuse/reply.rs", text),
        [0; 0]
    );
}

#[test]
fn a_protocol_that_does_something_is_found() {
    let text =
        "use std::ffi::OsStr;\nuse rustix::io::Errno;\n#[cfg(test)]\nmod t { use std::fs; }\n";
    assert_eq!(lines(the_protocol_is_pure, "src/fuse/wire/a.rs", text), [2]);
    assert_eq!(
        lines(the_protocol_is_pure, "src/fuse/channel.rs", text),
        [0; 0]
    );
}

#[test]
fn unsafe_outside_sys_is_found() {
    let text = "#![deny(unsafe_code)]\n// SAFETY: none\nfn f() { unsafe { g() } }\n";
    assert_eq!(lines(unsafe_stays_in_sys, "src/overlay/fd.rs", text), [3]);
}

#[test]
fn unsafe_without_its_reason_is_found() {
    let rule = unsafe_stays_in_sys;
    let bare = "fn f() {\n    // SAFETY: for the first only\n    unsafe { g() };\n    unsafe { g() };\n}\n";
    assert_eq!(lines(rule, "src/sys/fd.rs", bare), [4]);
    let split = "fn f() {\n    // SAFETY: `p` is\n    // valid.\n    let rc =\n        unsafe { g(p) };\n}\n";
    assert_eq!(lines(rule, "src/sys/fd.rs", split), [0; 0]);
    assert_eq!(
        lines(rule, "src/sys/fd.rs", "unsafe impl Send for T {}\n"),
        [1]
    );
    assert_eq!(
        lines(rule, "src/sys/fd.rs", "pub unsafe fn raw() {}\n"),
        [0; 0]
    );
}

#[test]
fn printing_outside_the_commands_is_found() {
    let text = "fn f() {\n    println!(\"x\");\n    dbg!(1);\n    eprintln!(\"println!\");\n}\n\
                #[cfg(test)]\nmod tests {\n    fn f() { println!(); }\n}\n";
    assert_eq!(
        lines(only_the_commands_print, "src/store/gc.rs", text),
        [2, 3, 4]
    );
    assert_eq!(
        lines(only_the_commands_print, "src/cli/stat.rs", text),
        [0; 0]
    );
    assert_eq!(lines(only_the_commands_print, "src/main.rs", text), [0; 0]);
}

#[test]
fn long_files_are_found() {
    let long = "fn f() {}\n".repeat(MAX_FILE_LINES);
    assert_eq!(lines(files_are_short, "src/sys/a.rs", &long), [0; 0]);
    let longer = format!("{long}fn g() {{}}\n");
    assert_eq!(lines(files_are_short, "src/sys/a.rs", &longer), [1]);
    let tested = format!("{long}#[cfg(test)]\nmod tests {{\n    fn f() {{}}\n}}\n");
    assert_eq!(lines(files_are_short, "src/sys/a.rs", &tested), [0; 0]);
}

#[test]
fn long_functions_are_found() {
    let body = |lines: usize| {
        format!(
            "fn f(a: [u8; 4]) -> u8 {{\n{}}}\n",
            "    g();\n".repeat(lines)
        )
    };
    let rule = functions_are_short;
    assert_eq!(
        lines(rule, "src/sys/a.rs", &body(MAX_FUNCTION_LINES - 2)),
        [0; 0]
    );
    let long = body(MAX_FUNCTION_LINES - 1);
    assert_eq!(lines(rule, "src/sys/a.rs", &long), [1]);
    let second = format!("trait T {{\n    fn a(&self);\n}}\n{long}");
    assert_eq!(lines(rule, "src/sys/a.rs", &second), [4]);
    let braces = format!(
        "fn f() {{\n    let c = '{{'; let s = \"}}\";\n{}}}\n",
        "\n".repeat(80)
    );
    assert_eq!(lines(rule, "src/sys/a.rs", &braces), [1]);
    let test = format!("#[cfg(test)]\nmod tests {{\n{long}}}\n");
    assert_eq!(lines(rule, "src/sys/a.rs", &test), [0; 0]);
}

#[test]
fn thrown_away_results_are_found() {
    let text = "fn f() {\n    let _ = g();\n    let _guard = g();\n    let _: R = g();\n    let _ = x;\n    \
                let _ = a\n        .b();\n}\n";
    assert_eq!(
        lines(no_result_is_thrown_away, "src/sys/a.rs", text),
        [2, 4, 6]
    );
}

#[test]
fn unfinished_work_is_found() {
    let text = "fn f() { todo!() }\nfn g() { unimplemented!(\"later\") }\n// todo!\n";
    assert_eq!(lines(nothing_is_left_to_do, "src/sys/a.rs", text), [1, 2]);
}

#[test]
fn unwraps_outside_tests_are_found() {
    let text = "fn f() { a.unwrap() }\nfn g() { a.expect(\"b\") }\nfn h() { a.unwrap_or(1) }\n\
                /// a.unwrap()\n#[test]\nfn t() { a.unwrap() }\n";
    assert_eq!(lines(nothing_unwraps, "src/sys/a.rs", text), [1, 2]);
}

#[test]
fn tests_ignored_for_no_reason_are_found() {
    let text = "#[test]\n#[ignore]\nfn a() {}\n#[ignore = \"slow\"]\nfn b() {}\nfn ignore() {}\n\
                #[ignore = \"needs CAP_CHOWN\"]\nfn c() {}\n// #[ignore]\n";
    assert_eq!(lines(ignored_tests_say_why, "tests/mount.rs", text), [2, 4]);
}

#[test]
fn literals_and_comments_are_not_code() {
    let text = "let a = r#\"unsafe \" \"#; let b = b\"unsafe\"; let c = '\"'; let d: &'a str = \"\\\"unsafe\";\n\
                /* unsafe /* unsafe */ unsafe */ let e = '\\''; unsafe { f() }\n";
    assert_eq!(lines(unsafe_stays_in_sys, "src/overlay/a.rs", text), [2]);
    let code = blank_comments_and_literals(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.matches("unsafe").count(), 1);
}

#[test]
fn modules_of_tests_are_recognised() {
    let source = Source::new(
        "src/overlay/mod.rs",
        "#[cfg(test)]\nmod tests;\nmod node;\n",
    );
    assert_eq!(test_module_files(&source), ["src/overlay/tests"]);
    let source = Source::new("src/store.rs", "#[cfg(test)]\nmod tests;\n");
    assert_eq!(test_module_files(&source), ["src/store/tests"]);
}
