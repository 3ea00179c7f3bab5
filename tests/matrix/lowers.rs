//! The lowers of all cells: three layers with everything that a layer can hold.

use std::path::{Path, PathBuf};

use crate::cell::Namespace;
use crate::support::sh;

/// Made once for all cells of a test, and never changed: `lower0` is the topmost.
pub struct Lowers {
    /// All on the file system of the upper.
    pub same: Vec<PathBuf>,
    /// The lowest one on another.
    pub mixed: Vec<PathBuf>,
}

/// The lowest layer. `$1` is 1 where device nodes and privileged xattrs can be made.
const BOTTOM: &str = r#"
    mkdir -p mc dir/sub/deep merged opq empty mv/d mv2 src/in src2 kept/in tow other/w
    for f in dir/a dir/b dir/c mc/data1 mc/data2 dir/sub/x dir/sub/y dir/sub/deep/z merged/low merged/both merged/gone \
        opq/old1 opq/old2 mv/f1 mv/f2 mv/d/g mv2/h mv2/i src/inner src/in/most src2/q kept/in/k solo over1 over2 \
        meta1 meta2 meta3 meta4 meta5 meta6 exch1 exch2 tow/t other/w/o; do
        echo "$f of the lowest layer" > $f
    done
    echo three > hard1; ln hard1 hard2; ln hard1 dir/hard3
    echo two > pair1; ln pair1 pair2
    echo four > quad1; ln quad1 quad2; ln quad1 quad3; ln quad1 dir/quad4
    ln -s dir/a sym; ln -s nowhere dangling; ln -s "$(printf 'x%.0s' $(seq 300))" symlong
    truncate -s 4M sparse; echo data | dd of=sparse bs=1 seek=1048576 conv=notrunc status=none
    seq 30000 > big; chmod 640 big
    mkfifo fifo; chmod 4755 solo; chmod 1777 kept; chmod 2755 other; chmod 700 tow
    setfattr -n user.foo -v bar meta4; setfattr -n user.gone -v soon meta5; setfattr -n user.d -v x mv
    setfacl -m u:5:rw meta6
    chown 3:4 meta2 dir/b mv/d
    if [ "$1" = 1 ]; then
        mknod null c 1 3; mknod block b 7 200; setfattr -n trusted.t -v tv meta4
    fi
"#;

const MIDDLE: &str = r#"
    mkdir -p merged opq mv2 dir
    for f in merged/mid merged/both opq/new1 mv2/j dir/b; do echo "$f of the middle layer" > $f; done
    mknod merged/gone c 0 0
    setfattr -n user.overlay.opaque -v y opq
    if [ "$1" = 1 ]; then setfattr -n trusted.overlay.opaque -v y opq; fi
"#;

const TOP: &str = r#"
    mkdir -p merged sp/moved mc
    echo top > merged/top
    mknod src c 0 0; mknod src2 c 0 0
    mkdir mc/moved
    setfattr -n user.overlay.redirect -v /src sp/moved
    setfattr -n user.overlay.redirect -v /src2 mc/moved
    if [ "$1" = 1 ]; then
        setfattr -n trusted.overlay.redirect -v /src sp/moved
        setfattr -n trusted.overlay.redirect -v /src2 mc/moved
        for f in mc/data1 mc/tagged; do
            truncate -s 29 $f; chmod 600 $f; setfattr -n trusted.overlay.metacopy -v '' $f
        done
        setfattr -n trusted.overlay.redirect -v /mc/data2 mc/tagged
    fi
"#;

/// Builds the layers in `disk`, and a second lowest one in `other`.
pub fn build(disk: &Path, other: &Path, namespace: Namespace) -> Lowers {
    let base = disk.join("lowers");
    let far = other.join("lowers");
    let first = if namespace == Namespace::User {
        "0"
    } else {
        "1"
    };
    let make = |dir: PathBuf, script: &str| {
        std::fs::create_dir_all(&dir).unwrap();
        let aging = "find . -depth -exec touch -h -d '2001-02-03 04:05:06.789' {} +";
        sh(
            &dir,
            &format!("umask 022; set -- {first}; {script}\n{aging}"),
        );
        dir
    };
    let top = make(base.join("lower0"), TOP);
    let middle = make(base.join("lower1"), MIDDLE);
    let bottom = make(base.join("lower2"), BOTTOM);
    let far = make(far.join("lower2"), BOTTOM);
    Lowers {
        same: vec![top.clone(), middle.clone(), bottom],
        mixed: vec![top, middle, far],
    }
}
