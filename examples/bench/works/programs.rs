//! Programs inside: in a chroot of the merged tree, as a container runs them.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount};

use crate::data::{Scale, Set};
use crate::exec;
use crate::model::{Goal, Unit};
use crate::render::thousands;
use crate::targets::unmount;
use crate::work::{Session, Taken, Work, drop_caches, ended};

/// The merged tree as a root, with /proc and a small /dev.
struct Chroot {
    root: PathBuf,
}

impl Chroot {
    fn new(root: &Path) -> Result<Chroot> {
        let chroot = Chroot {
            root: root.to_owned(),
        };
        let none: Option<&CStr> = None;
        mount("proc", root.join("proc"), "proc", MountFlags::empty(), none)
            .context("mounting proc")?;
        let dev = root.join("dev");
        mount(
            "tmpfs",
            &dev,
            "tmpfs",
            MountFlags::NOSUID,
            Some(c"mode=755"),
        )
        .context("mounting dev")?;
        for (name, minor) in [
            ("null", 3),
            ("zero", 5),
            ("full", 7),
            ("random", 8),
            ("urandom", 9),
        ] {
            let mode = Mode::from(0o666);
            mknodat(
                CWD,
                dev.join(name),
                FileType::CharacterDevice,
                mode,
                makedev(1, minor),
            )?;
        }
        // apt-get writes its log through a terminal.
        let pts = dev.join("pts");
        fs::create_dir(&pts)?;
        let own = Some(c"newinstance,ptmxmode=0666,mode=620");
        mount("devpts", &pts, "devpts", MountFlags::NOSUID, own).context("mounting devpts")?;
        std::os::unix::fs::symlink("pts/ptmx", dev.join("ptmx"))?;
        std::os::unix::fs::symlink("/proc/self/fd", dev.join("fd"))?;
        Ok(chroot)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(words).env_clear();
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root");
        command
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

impl Drop for Chroot {
    fn drop(&mut self) {
        for name in ["dev/pts", "dev", "proc"] {
            if let Err(e) = unmount(&self.root.join(name)) {
                eprintln!("bench: {e:#}");
            }
        }
    }
}

/// Undoes, on the bare file system, what work has left in a tree that lives longer than the work.
fn undo(session: &Session<'_>, chroot: &Chroot, words: &[&str]) -> Result<()> {
    if session.mount.is_bare() {
        exec::succeed(&mut chroot.command(words))?;
    }
    Ok(())
}

const IMPORTS: &str = "import argparse, ast, asyncio, base64, bz2, calendar, cgi, cmd, code, collections, concurrent, \
configparser, csv, ctypes, dataclasses, datetime, decimal, difflib, dis, email.message, enum, filecmp, fileinput, \
fractions, ftplib, functools, getpass, gettext, glob, gzip, hashlib, heapq, html, http.client, http.server, imaplib, \
inspect, ipaddress, json, logging.config, lzma, mailbox, mimetypes, multiprocessing, netrc, optparse, pathlib, pdb, \
pickle, pkgutil, platform, plistlib, poplib, pprint, profile, pydoc, queue, random, sched, secrets, shelve, shlex, \
shutil, smtplib, socketserver, sqlite3, ssl, statistics, subprocess, tarfile, tempfile, threading, timeit, tokenize, \
traceback, unittest.mock, urllib.request, uuid, wave, xml.dom.minidom, xml.etree.ElementTree, xmlrpc.client, zipfile; \
import sys; print(len(sys.modules))";

fn python(session: &Session<'_>, cold: bool) -> Result<Taken> {
    let chroot = Chroot::new(session.mount.read_root())?;
    let command = || chroot.command(&["/usr/bin/python3", "-B", "-W", "ignore", "-c", IMPORTS]);
    let verify = |done: &exec::Done| {
        ended(done, 0)?;
        let modules: usize = done.text.trim().parse()?;
        ensure!(modules > 150, "{modules} modules");
        Ok(())
    };
    if cold {
        drop_caches(session)?;
        return session.program(1, command, verify);
    }
    session.warm_program(1, command, verify)
}

fn compile(session: &Session<'_>, units: u64) -> Result<Taken> {
    let root = session.mount.read_root();
    let chroot = Chroot::new(root)?;
    let version = exec::succeed(&mut chroot.command(&["cc", "--version"]))?;
    ensure!(version.lines > 0, "no compiler");
    let make = || chroot.command(&["make", "-s", "-C", "/srv/project"]);
    let taken = session.program(units, make, |done| ended(done, 0))?;
    let program = fs::metadata(root.join("srv/project/prog"))?;
    ensure!(program.len() > 1000, "a program of {} bytes", program.len());
    undo(
        session,
        &chroot,
        &["sh", "-c", "rm -f /srv/project/prog /srv/project/*.o"],
    )?;
    Ok(taken)
}

fn install(session: &Session<'_>, words: &[&str], files: u64) -> Result<Taken> {
    let root = session.mount.read_root();
    let chroot = Chroot::new(root)?;
    let taken = session.program(files, || chroot.command(words), |done| ended(done, 0));
    let installed =
        exec::run(&mut chroot.command(&["dpkg-query", "-W", "-f", "${Status}", "rovl-bench"]));
    let last = root.join(format!(
        "usr/share/rovl-bench/d{}/f{}",
        (files - 1) / 50,
        files - 1
    ));
    let size = fs::metadata(last).map(|m| m.len());
    undo(
        session,
        &chroot,
        &["dpkg", "--purge", "--force-all", "rovl-bench"],
    )?;
    let taken = taken?;
    let installed = installed?;
    ensure!(
        installed.text == "install ok installed",
        "dpkg says {:?}",
        installed.text
    );
    ensure!(
        size.as_ref().is_ok_and(|n| *n == 4096),
        "the last file: {size:?}"
    );
    Ok(taken)
}

pub fn works(scale: &Scale) -> Vec<Work> {
    let goals = [Goal::kernel(1.25), Goal::peer(0.7)];
    let (units, files) = (scale.units as u64, scale.packaged as u64);
    let words = thousands(files as f64);
    vec![
        Work::new(
            "python-warm",
            "python with 80 imports, warm",
            Unit::Seconds,
            Set::Root,
            |s| python(s, false),
        )
        .per("start"),
        Work::new(
            "python-cold",
            "python with 80 imports, cold",
            Unit::Seconds,
            Set::Root,
            |s| python(s, true),
        )
        .per("start"),
        Work::new(
            "compile",
            format!("make of {units} C files inside"),
            Unit::Seconds,
            Set::Root,
            move |s| compile(s, units),
        )
        .per("C file")
        .goals(&goals),
        Work::new(
            "dpkg",
            format!("dpkg -i of {words} files"),
            Unit::Seconds,
            Set::Root,
            move |s| install(s, &["dpkg", "-i", "/srv/rovl-bench.deb"], files),
        )
        .per("file")
        .goals(&goals),
        Work::new(
            "apt-get",
            format!("apt-get install of {words} files"),
            Unit::Seconds,
            Set::Root,
            move |s| {
                let words = ["apt-get", "install", "-y", "-q", "/srv/rovl-bench.deb"];
                install(s, &words, files)
            },
        )
        .per("file")
        .goals(&goals),
    ]
}
