//! What an OCI runtime is told: the `config.json` of a bundle, and the users that it names. Pure.
//!
//! Source: the OCI runtime specification, config.md and config-linux.md; the lists of capabilities and of hidden
//! paths are Docker's defaults.

pub mod users;

use serde_json::{Value, json};

/// A directory or file of the host that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host, absolute.
    pub source: String,
    /// In the container, absolute.
    pub target: String,
    /// It can't be written through this mount.
    pub read_only: bool,
}

/// What is to be run, and in what.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// The working directory, absolute.
    pub cwd: String,
    /// Who runs it.
    pub user: users::User,
    /// It gets a terminal of its own.
    pub terminal: bool,
    /// The root can't be written.
    pub read_only: bool,
    /// The name of the host, as the container sees it.
    pub hostname: String,
    /// Mounts besides those that every container has.
    pub binds: Vec<Bind>,
    /// The ids to be mapped, each onto itself, into a user namespace of the container's own: first and count.
    /// Empty: whoever runs the runtime has made one.
    pub ids: Vec<(u32, u32)>,
    /// There is a group 5, which terminals belong to.
    pub has_tty_group: bool,
}

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const HIDDEN: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The `config.json` of a bundle whose tree is `rootfs`. The network is the host's: there is no namespace for it.
pub fn config(spec: &Spec) -> Value {
    let is_root = spec.user.uid == 0;
    let effective: &[&str] = if is_root { &CAPABILITIES } else { &[] };
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    let mut linux = json!({"maskedPaths": HIDDEN, "readonlyPaths": READ_ONLY});
    if !spec.ids.is_empty() {
        namespaces.push("user");
        let rows: Vec<Value> = spec
            .ids
            .iter()
            .map(|(first, count)| json!({"containerID": first, "hostID": first, "size": count}))
            .collect();
        linux["uidMappings"] = rows.clone().into();
        linux["gidMappings"] = rows.into();
    }
    linux["namespaces"] = namespaces
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect::<Vec<Value>>()
        .into();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": spec.terminal,
            "user": {
                "uid": spec.user.uid, "gid": spec.user.gid, "additionalGids": spec.user.groups,
            },
            "args": spec.args,
            "env": spec.env,
            "cwd": spec.cwd,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": effective, "permitted": effective,
            },
            "noNewPrivileges": false,
        },
        "root": {"path": "rootfs", "readonly": spec.read_only},
        "hostname": spec.hostname,
        "mounts": mounts(spec),
        "linux": linux,
    })
}

fn mounts(spec: &Spec) -> Vec<Value> {
    let mut terminals = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    if spec.has_tty_group {
        terminals.push("gid=5");
    }
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc",
            "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": terminals}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        // The network is the host's, so that no other sysfs may be mounted by those who don't own that.
        json!({"destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"]}),
    ];
    for bind in &spec.binds {
        let mut options = vec!["rbind", "rprivate"];
        options.push(if bind.read_only { "ro" } else { "rw" });
        mounts.push(
            json!({"destination": bind.target, "type": "none", "source": bind.source,
            "options": options}),
        );
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            args: vec!["a".into()],
            env: Vec::new(),
            cwd: "/".into(),
            user: users::User::default(),
            terminal: false,
            read_only: true,
            hostname: "h".into(),
            binds: vec![Bind {
                source: "/s".into(),
                target: "/t".into(),
                read_only: true,
            }],
            ids: Vec::new(),
            has_tty_group: false,
        }
    }

    fn kinds(config: &Value) -> Vec<&str> {
        let namespaces = config["linux"]["namespaces"].as_array().unwrap();
        namespaces
            .iter()
            .map(|n| n["type"].as_str().unwrap())
            .collect()
    }

    #[test]
    fn the_user_namespace_is_asked_for_where_ids_are_mapped() {
        let config = super::config(&spec());
        assert_eq!(kinds(&config), ["pid", "ipc", "uts", "mount"]);
        let config = super::config(&Spec {
            ids: vec![(0, 10), (20, 5)],
            ..spec()
        });
        assert_eq!(kinds(&config), ["pid", "ipc", "uts", "mount", "user"]);
        let maps = &config["linux"]["gidMappings"];
        assert_eq!(maps[1], json!({"containerID": 20, "hostID": 20, "size": 5}));
    }

    #[test]
    fn binds_come_last_and_only_root_has_capabilities() {
        let config = super::config(&spec());
        let mounts = config["mounts"].as_array().unwrap();
        let last = mounts.last().unwrap();
        assert_eq!(last["destination"], "/t");
        assert_eq!(last["options"], json!(["rbind", "rprivate", "ro"]));
        let capabilities = |config: &Value| {
            let effective = &config["process"]["capabilities"]["effective"];
            effective.as_array().unwrap().len()
        };
        assert_eq!(capabilities(&config), CAPABILITIES.len());
        let mut other = spec();
        other.user.uid = 7;
        assert_eq!(capabilities(&super::config(&other)), 0);
    }
}
