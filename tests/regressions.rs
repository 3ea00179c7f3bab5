//! Behaviours that a peer got wrong once: each is a test, so that it stays right here.

mod support;
#[test]
fn smoke() {
    use support::*;
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    std::fs::write(layers.lower().join("a"), "x").unwrap();
    let mut m = subject().mount(&layers, &[]);
    std::fs::write(m.path("b"), "y").unwrap();
    std::fs::write(m.path("a"), "y").unwrap();
    let d = tree_digest(m.root());
    m.remount();
    assert_digests_equal(&d, &tree_digest(m.root()), "before and after");
    assert_eq!(
        as_user(1000, 1000, || errno(std::fs::write(m.path("c"), "y"))),
        13
    );
    if let Some(pid) = m.daemon_pid() {
        let t = Trace::attach(pid, "all");
        std::fs::write(m.path("d"), "y").unwrap();
        for c in t.finish() {
            eprintln!("{c:?}");
        }
    }
}
