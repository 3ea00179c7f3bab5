//! From the image's config and the command line to what the runtime is told.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::keeper::read_in;
use super::{Orders, RunArgs};
use crate::cli::{Failure, userns};
use crate::oci::{Bind, Spec, users};
use crate::store::container::Container;
use crate::store::container::change::set_env;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The group that terminals belong to.
const TTY_GROUP: u32 = 5;

/// The image's config with what the command line changes.
pub fn merged(args: &RunArgs, image: Option<&Value>) -> Map<String, Value> {
    let mut config = match image {
        Some(Value::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    if let Some(entrypoint) = &args.entrypoint {
        let words: Vec<&str> = Some(entrypoint.as_str())
            .filter(|e| !e.is_empty())
            .into_iter()
            .collect();
        config.insert("Entrypoint".into(), words.into());
        config.remove("Cmd");
    }
    if !args.command().is_empty() {
        config.insert("Cmd".into(), args.command().into());
    }
    for pair in &args.env {
        match pair.split_once('=') {
            Some((key, value)) => set_env(&mut config, key, value),
            None => {
                if let Ok(value) = std::env::var(pair) {
                    set_env(&mut config, pair, &value);
                }
            }
        }
    }
    if let Some(workdir) = &args.workdir {
        config.insert("WorkingDir".into(), workdir.clone().into());
    }
    if let Some(user) = &args.user {
        config.insert("User".into(), user.clone().into());
    }
    config
}

fn words(config: &Map<String, Value>, key: &str) -> Vec<String> {
    let list = config.get(key).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|word| word.as_str().map(str::to_owned))
        .collect()
}

fn text<'a>(config: &'a Map<String, Value>, key: &str) -> &'a str {
    config.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn command(config: &Map<String, Value>) -> Vec<String> {
    [words(config, "Entrypoint"), words(config, "Cmd")].concat()
}

/// Fails when there is nothing to run.
pub fn check_command(config: &Map<String, Value>) -> Result<(), Failure> {
    match command(config).is_empty() {
        true => Err(Failure::failed(
            "the image names no command, and none was given",
        )),
        false => Ok(()),
    }
}

/// What is to be run.
pub fn spec(
    args: &RunArgs,
    config: &Map<String, Value>,
    rootfs: &Path,
    container: &Container,
    orders: &Orders,
) -> Result<Spec, Failure> {
    let (passwd, group) = (read_in(rootfs, "etc/passwd"), read_in(rootfs, "etc/group"));
    let mut user = users::find(text(config, "User"), &passwd, &group)
        .map_err(|error| Failure::failed(error.to_string()))?;
    if userns::has_one_id() {
        user.groups.clear();
    }
    let hostname = container.short().to_owned();
    let terminal = args.wants_terminal();
    let mut config = config.clone();
    let given = words(&config, "Env");
    let is_given = |key: &str| given.iter().any(|pair| pair.split('=').next() == Some(key));
    let mut default = |key: &str, value: &str| {
        if !is_given(key) {
            set_env(&mut config, key, value);
        }
    };
    default("PATH", PATH);
    default("HOSTNAME", &hostname);
    default("HOME", user.home.as_deref().unwrap_or("/"));
    if terminal {
        default("TERM", "xterm");
    }
    let cwd = match text(&config, "WorkingDir") {
        "" => "/".to_owned(),
        dir if dir.starts_with('/') => dir.to_owned(),
        dir => format!("/{dir}"),
    };
    let binds = args.volumes.iter().map(|text| bind(text));
    let maps = own_ids();
    Ok(Spec {
        args: command(&config),
        env: words(&config, "Env"),
        cwd,
        user,
        terminal,
        read_only: args.read_only,
        hostname,
        binds: binds.collect::<Result<_, _>>()?,
        has_tty_group: maps
            .iter()
            .any(|(first, count)| (*first..first.saturating_add(*count)).contains(&TTY_GROUP)),
        ids: if orders.own_users { Vec::new() } else { maps },
    })
}

/// The ids that this user namespace has, first and count.
fn own_ids() -> Vec<(u32, u32)> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            let first = numbers.next()?.ok()?;
            Some((first, numbers.nth(1)?.ok()?))
        })
        .collect()
}

/// `SRC:DST[:OPTIONS]`.
fn bind(text: &str) -> Result<Bind, Failure> {
    let bad = |why: &str| Failure::failed(format!("--volume {text}: {why}"));
    let mut parts = text.split(':');
    let (source, target) = match (parts.next(), parts.next()) {
        (Some(source), Some(target)) if !source.is_empty() => (source, target),
        _ => return Err(bad("SRC:DST is needed")),
    };
    let options: Vec<&str> = parts
        .next()
        .map(|o| o.split(',').collect())
        .unwrap_or_default();
    if parts.next().is_some() {
        return Err(bad("SRC:DST:OPTIONS is all there is"));
    }
    // The labels of SELinux, and what is done anyway.
    let known = ["ro", "rw", "z", "Z", "rbind", "bind", "rprivate", "private"];
    if let Some(unknown) = options.iter().find(|option| !known.contains(option)) {
        return Err(bad(&format!("unknown option {unknown}")));
    }
    if !target.starts_with('/') {
        return Err(bad("the place in the container is to begin with /"));
    }
    let path = Path::new(source);
    let source = path
        .canonicalize()
        .map_err(|error| bad(&format!("{source}: {error}")))?;
    let source = source
        .to_str()
        .ok_or_else(|| bad("a path that is no UTF-8"))?;
    Ok(Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: options.contains(&"ro"),
    })
}

/// The files of /etc that are made for each container.
const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Writes them.
pub fn write_files(bundle: &Path, hostname: &str) -> std::io::Result<()> {
    let hosts = fs::read_to_string("/etc/hosts")
        .unwrap_or_else(|_| "127.0.0.1\tlocalhost\n::1\tlocalhost\n".into());
    let resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let hosts = format!("{}\n127.0.1.1\t{hostname}\n", hosts.trim_end());
    let contents = [hosts, format!("{hostname}\n"), resolv];
    for (name, content) in FILES.iter().zip(contents) {
        fs::write(bundle.join(name), content)?;
    }
    Ok(())
}

/// Shows them in the container, unless the user has something to show there, or the tree has no place for them.
pub fn with_files(mut spec: Spec, bundle: &Path, rootfs: &Path) -> Spec {
    for name in FILES {
        let target = format!("/etc/{name}");
        let is_taken = spec
            .binds
            .iter()
            .any(|bind| bind.target == target || bind.target == "/etc");
        let place = rootfs.join("etc").join(name);
        if !is_taken
            && place
                .symlink_metadata()
                .is_ok_and(|metadata| metadata.is_file())
        {
            let bind = Bind {
                source: bundle.join(name).to_string_lossy().into_owned(),
                target,
                read_only: false,
            };
            spec.binds.insert(0, bind);
        }
    }
    spec
}

/// What a runtime's failure means: 126, the command can't be executed; 127, it isn't there; 125, anything else.
pub fn explain(runtime: &Path, said: &str, status: &str) -> Failure {
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    let why = last.map_or(status, str::trim);
    let lower = why.to_lowercase();
    let is_about_command = ["exec", "executable", "start container process"]
        .iter()
        .any(|word| lower.contains(word));
    let code = if !is_about_command {
        super::FAILED
    } else if lower.contains("not found") || lower.contains("no such file") {
        127
    } else if ["permission denied", "exec format", "is a directory"]
        .iter()
        .any(|w| lower.contains(w))
    {
        126
    } else {
        super::FAILED
    };
    let name: PathBuf = runtime.file_name().unwrap_or_default().into();
    Failure {
        code,
        message: format!("{}: {why}", name.display()),
    }
}
