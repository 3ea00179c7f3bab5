# shellcheck shell=bash
# What tools/demo, tools/test and tools/conformance share: words on the terminal, packages, checks, listings.
# Sourced after `set -euo pipefail`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

export LC_ALL=C.UTF-8 TZ=UTC
# A caller's umask must not decide what the trees look like.
umask 022

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
else
    BOLD='' DIM='' RED='' GREEN='' PLAIN=''
fi

PASSED=0
FAILED=0

section() { printf '\n%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }
say() { printf '%s\n' "$*"; }
note() { printf '%s   %s%s\n' "$DIM" "$*" "$PLAIN"; }
pass() { PASSED=$((PASSED + 1)); printf '%s   ok     %s%s\n' "$GREEN" "$*" "$PLAIN"; }
fail() { FAILED=$((FAILED + 1)); printf '%s   FAILED %s%s\n' "$RED" "$*" "$PLAIN"; }
die() { printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$PLAIN" >&2; exit 1; }

# show COMMAND…: the command as one would type it, then what it prints. That it fails is a failed check.
show() {
    local word line=''
    for word in "$@"; do
        case $word in *[\ \;\>]*) word="'$word'" ;; esac
        line+=" $word"
    done
    printf '%s   $%s%s\n' "$BOLD" "$line" "$PLAIN"
    "$@" 2>&1 | sed '/./s/^/     /' || fail "$line"
}

need_root() {
    [ "$(id -u)" = 0 ] && return
    die "$1 needs root. Run it as: sudo --preserve-env=PATH,CARGO_TARGET_DIR $0"
}

# need_packages NAME…: installs what is missing of these Debian packages, and says so.
need_packages() {
    local name missing=()
    for name in "$@"; do
        case $(dpkg-query -W -f '${db:Status-Abbrev}' "$name" 2>/dev/null) in
            ii*) ;;
            *) missing+=("$name") ;;
        esac
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (no apt-get here to do it)"
    say "Installing with apt-get: ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
        --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

need_cargo() {
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null ||
        die "cargo is not installed; install Rust 1.90 or newer (with rustup), then run this again"
    command -v cc >/dev/null || need_packages gcc libc6-dev # the linker
}

# need_cargo_tool NAME VERSION: that version of a program from a crate; kept in cargo's own place for the next run.
need_cargo_tool() {
    need_cargo
    case "$("$1" --version 2>/dev/null)" in *" $2") return ;; esac
    say "Installing with cargo: $1 $2"
    # Not in this project's target directory, nor with its flags.
    (cd / && env -u RUSTFLAGS -u CARGO_TARGET_DIR cargo install --quiet --locked --force "$1@$2") ||
        die "cargo could not install $1 $2"
}

need_fuse() {
    [ -e /dev/fuse ] || modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || mknod -m 666 /dev/fuse c 10 229 || true
    true 3<>/dev/fuse || die "/dev/fuse can't be opened: load the module fuse, or let this container use the device"
}

# The program under test: $ROVL, or this source built in release mode.
build_rovl() {
    if [ -n "${ROVL:-}" ]; then
        say "Using $ROVL"
        return
    fi
    need_cargo
    say "Building (cargo build --release)"
    (cd "$ROOT" && cargo build --release --quiet) || die "the build failed"
    ROVL=$TARGET/release/rovl
}

is_mounted() { mountpoint -q "$1" 2>/dev/null || [ -n "$(findmnt -rn -o TARGET -M "$1" 2>/dev/null)" ]; }

# unmount_below DIR: everything mounted on DIR or under it, the last first.
unmount_below() {
    local target
    awk -v dir="$1" '{ t = $5; gsub(/\\040/, " ", t)
        if (t == dir || index(t, dir "/") == 1) print t }' /proc/self/mountinfo | tac |
        while IFS= read -r target; do
            umount "$target" 2>/dev/null || umount -l "$target" || true
        done
}

# listing DIR: everything that a program can see of a tree, one line a fact, in an order that depends on
# nothing but the tree: type, mode, owner, size, mtime to the nanosecond, link count and target of every
# entry, device numbers, SHA-256 of contents, xattrs (of all namespaces that the caller may read, but the label
# that SELinux makes up for each mount), and which names are one inode. Sizes and link counts of directories
# are the file system's own business and are left out.
listing() (
    cd "$1" || exit 1
    find . -type d -printf '%p\t%y %#m %U:%G %T@\n' \
        -o -type f -printf '%p\t%y %#m %U:%G %T@ size %s links %n\n' \
        -o -printf '%p\t%y %#m %U:%G %T@ links %n -> %l\n' | sort
    find . \( -type b -o -type c \) -print0 | sort -z | xargs -0r stat -c '%n	device %t:%T'
    find . -type f -print0 | sort -z | xargs -0r sha256sum
    find . -print0 | sort -z | xargs -0r getfattr -h -d -m - -e hex | awk '
        /^# file: / { name = substr($0, 9); next }
        $0 != "" && $0 !~ /^security.selinux=/ { print name "\t" $0 }' | sort
    find . ! -type d -links +1 -printf '%D:%i\t%p\n' | sort | awk -F '\t' '
        $1 != inode { inode = $1; first = $2 }
        { print $2 "\tsame inode as " first }' | sort
)

checksum() { sha256sum <"$1" | cut -c 1-16; }

# same_listing WHAT A B: a check that two listings agree; shows where they don't.
same_listing() {
    local lines
    lines=$(wc -l <"$2")
    if [ "$lines" -gt 0 ] && cmp -s "$2" "$3"; then
        pass "$1 ($lines facts, sha256 $(checksum "$2")…)"
    else
        fail "$1: $(checksum "$2")… and $(checksum "$3")…"
        diff "$2" "$3" | head -n 20 | sed 's/^/          /' || true
    fi
}

summary() {
    printf '\n%d passed, %d failed\n' "$PASSED" "$FAILED"
    [ "$FAILED" = 0 ] && [ "$PASSED" -gt 0 ]
}
