//! Changes of an image's config, as `docker commit --change` takes them: lines of a Dockerfile. Pure.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::store::error::{Result, StoreError};

/// The instructions that only change the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instruction {
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Label,
    OnBuild,
    StopSignal,
    User,
    Volume,
    WorkDir,
}

const NAMES: [(&str, Instruction); 10] = [
    ("CMD", Instruction::Cmd),
    ("ENTRYPOINT", Instruction::Entrypoint),
    ("ENV", Instruction::Env),
    ("EXPOSE", Instruction::Expose),
    ("LABEL", Instruction::Label),
    ("ONBUILD", Instruction::OnBuild),
    ("STOPSIGNAL", Instruction::StopSignal),
    ("USER", Instruction::User),
    ("VOLUME", Instruction::Volume),
    ("WORKDIR", Instruction::WorkDir),
];

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    instruction: Instruction,
    rest: String,
}

impl FromStr for Change {
    type Err = StoreError;

    fn from_str(line: &str) -> Result<Change> {
        let bad = |why: &str| StoreError::BadName(format!("change {line:?}: {why}"));
        let (word, rest) = line
            .trim()
            .split_once(char::is_whitespace)
            // `CMD=…`, as podman takes it too.
            .or_else(|| line.trim().split_once('='))
            .ok_or_else(|| bad("an instruction and its value are needed"))?;
        let known = NAMES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(word));
        let Some((_, instruction)) = known else {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            return Err(bad(&format!("{word} is none of {}", names.join(", "))));
        };
        let change = Change {
            instruction: *instruction,
            rest: rest.trim().to_owned(),
        };
        // What can't be applied is refused before anything is done.
        apply(std::slice::from_ref(&change), &mut Map::new()).map_err(|e| bad(&e.to_string()))?;
        Ok(change)
    }
}

/// Applies changes, in this order, to the `config` of an image's config.
pub fn apply(changes: &[Change], config: &mut Map<String, Value>) -> Result<()> {
    let mut cmd_was_set = false;
    for change in changes {
        change.apply(config, cmd_was_set)?;
        cmd_was_set |= change.instruction == Instruction::Cmd;
    }
    Ok(())
}

impl Change {
    fn apply(&self, config: &mut Map<String, Value>, cmd_was_set: bool) -> Result<()> {
        let env = environment(config);
        let words = || words(&self.rest, &env);
        match self.instruction {
            Instruction::Cmd => {
                config.insert("Cmd".into(), command(&self.rest));
            }
            Instruction::Entrypoint => {
                config.insert("Entrypoint".into(), command(&self.rest));
                // The old one was meant for the old entry point.
                if !cmd_was_set {
                    config.remove("Cmd");
                }
            }
            Instruction::Env => {
                for (key, value) in pairs(&self.rest, &env, "ENV")? {
                    set_env(config, &key, &value);
                }
            }
            Instruction::Label => {
                let labels = pairs(&self.rest, &env, "LABEL")?;
                let labels = labels.into_iter().map(|(key, value)| (key, value.into()));
                extend(config, "Labels", labels);
            }
            Instruction::Expose => {
                let ports: Vec<String> = words()?.iter().map(|w| port(w)).collect::<Result<_>>()?;
                extend(
                    config,
                    "ExposedPorts",
                    ports.into_iter().map(|p| (p, json!({}))),
                );
            }
            Instruction::Volume => {
                let paths = match json_words(&self.rest) {
                    Some(paths) => paths,
                    None => words()?,
                };
                if paths.is_empty() || paths.iter().any(String::is_empty) {
                    return Err(bad("VOLUME needs paths"));
                }
                extend(config, "Volumes", paths.into_iter().map(|p| (p, json!({}))));
            }
            Instruction::OnBuild => match config.get_mut("OnBuild") {
                Some(Value::Array(list)) => list.push(self.rest.clone().into()),
                _ => drop(config.insert("OnBuild".into(), json!([self.rest]))),
            },
            Instruction::StopSignal => {
                config.insert("StopSignal".into(), one(words()?, "STOPSIGNAL")?.into());
            }
            Instruction::User => {
                config.insert("User".into(), one(words()?, "USER")?.into());
            }
            Instruction::WorkDir => {
                let path = one(words()?, "WORKDIR")?;
                let old = config.get("WorkingDir").and_then(Value::as_str);
                let joined = clean(&format!(
                    "{}/{path}",
                    match path.starts_with('/') {
                        true => "",
                        false => old.unwrap_or(""),
                    }
                ));
                config.insert("WorkingDir".into(), joined.into());
            }
        }
        Ok(())
    }
}

fn bad(what: &str) -> StoreError {
    StoreError::BadName(what.to_owned())
}

fn one(words: Vec<String>, what: &str) -> Result<String> {
    match <[String; 1]>::try_from(words) {
        Ok([word]) if !word.is_empty() => Ok(word),
        _ => Err(bad(&format!("{what} needs one value"))),
    }
}

/// Adds to an object of the config, which is made if need be.
fn extend(
    config: &mut Map<String, Value>,
    key: &str,
    entries: impl Iterator<Item = (String, Value)>,
) {
    let mut object = match config.remove(key) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    object.extend(entries);
    config.insert(key.to_owned(), object.into());
}

/// Without `.`, `..` and double slashes.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn port(word: &str) -> Result<String> {
    let (number, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    let is_range = number
        .split_once('-')
        .is_some_and(|(a, b)| is_port(a) && is_port(b));
    if !(is_port(number) || is_range) || !["tcp", "udp", "sctp"].contains(&protocol) {
        return Err(bad(&format!("{word:?} is no port")));
    }
    Ok(format!("{number}/{protocol}"))
}

/// A list as JSON, or a command for the shell.
fn command(text: &str) -> Value {
    match json_words(text) {
        Some(words) => words.into(),
        None if text.is_empty() => Value::Null,
        None => json!(["/bin/sh", "-c", text]),
    }
}

fn json_words(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

fn environment(config: &Map<String, Value>) -> Vec<(String, String)> {
    let env = config.get("Env").and_then(Value::as_array);
    let pair = |value: &Value| {
        let (key, value) = value.as_str()?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    env.into_iter().flatten().filter_map(pair).collect()
}

/// Sets a variable, in its place if it is there.
pub fn set_env(config: &mut Map<String, Value>, key: &str, value: &str) {
    let entry = config.entry("Env").or_insert(Value::Null);
    if !entry.is_array() {
        *entry = json!([]);
    }
    let Value::Array(list) = entry else { return };
    let text = Value::from(format!("{key}={value}"));
    let is_it = |value: &&mut Value| {
        let name = value.as_str().and_then(|text| text.split('=').next());
        name == Some(key)
    };
    match list.iter_mut().find(is_it) {
        Some(old) => *old = text,
        None => list.push(text),
    }
}

/// `K=V …`, or, the old form, `K V`.
fn pairs(text: &str, env: &[(String, String)], what: &str) -> Result<Vec<(String, String)>> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (key, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| bad(&format!("{what} needs KEY=VALUE")))?;
        let value = words(&format!("\"{}\"", value.trim().replace('"', "\\\"")), env)?;
        return Ok(vec![(key.to_owned(), value.concat())]);
    }
    words(text, env)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(bad(&format!("{what}: {word:?} is not KEY=VALUE"))),
        })
        .collect()
}

/// Words as a Dockerfile has them: quotes, backslashes, `$NAME` and `${NAME}`, which single quotes keep as they are.
fn words(text: &str, env: &[(String, String)]) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => {
                let next = rest.next().unwrap_or('\\');
                let word = word.get_or_insert_default();
                if quote.is_some() && !matches!(next, '"' | '\\' | '$') {
                    word.push('\\');
                }
                word.push(next);
            }
            (None | Some('"'), '$') => {
                let value = variable(&mut rest, env);
                word.get_or_insert_default().push_str(&value);
            }
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(bad("a quote is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// What stands behind a `$`.
fn variable(
    rest: &mut std::iter::Peekable<std::str::Chars<'_>>,
    env: &[(String, String)],
) -> String {
    let braced = rest.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    if braced {
        rest.next_if_eq(&'}');
    }
    if name.is_empty() {
        return "$".into();
    }
    env.iter()
        .rev()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(lines: &[&str]) -> Value {
        let mut config = json!({
            "Cmd": ["old"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv",
            "Labels": {"x": "y"},
        });
        let changes: Vec<Change> = lines.iter().map(|line| line.parse().unwrap()).collect();
        apply(&changes, config.as_object_mut().unwrap()).unwrap();
        config
    }

    #[test]
    fn every_instruction_changes_what_docker_changes() {
        let rows: &[(&str, &str, Value)] = &[
            ("CMD [\"a\", \"b c\"]", "Cmd", json!(["a", "b c"])),
            ("CMD a b", "Cmd", json!(["/bin/sh", "-c", "a b"])),
            ("entrypoint [\"/e\"]", "Entrypoint", json!(["/e"])),
            ("ENTRYPOINT [\"/e\"]", "Cmd", Value::Null),
            (
                "ENV A=2 B='x $A' C=\"q w\"",
                "Env",
                json!(["PATH=/bin", "A=2", "B=x $A", "C=q w"]),
            ),
            ("ENV PATH=$PATH:/x", "Env", json!(["PATH=/bin:/x", "A=1"])),
            (
                "ENV OLD way ${A}",
                "Env",
                json!(["PATH=/bin", "A=1", "OLD=way 1"]),
            ),
            (
                "EXPOSE 80 53/udp",
                "ExposedPorts",
                json!({"80/tcp": {}, "53/udp": {}}),
            ),
            (
                "LABEL k=v \"l m\"=\"n o\"",
                "Labels",
                json!({"k": "v", "l m": "n o", "x": "y"}),
            ),
            ("ONBUILD RUN x", "OnBuild", json!(["RUN x"])),
            ("STOPSIGNAL SIGINT", "StopSignal", json!("SIGINT")),
            ("USER 1:2", "User", json!("1:2")),
            ("VOLUME /a /b", "Volumes", json!({"/a": {}, "/b": {}})),
            ("VOLUME [\"/c d\"]", "Volumes", json!({"/c d": {}})),
            ("WORKDIR sub/../dir", "WorkingDir", json!("/srv/dir")),
            ("WORKDIR /x", "WorkingDir", json!("/x")),
            ("USER=web", "User", json!("web")),
        ];
        for (line, key, expected) in rows {
            let config = applied(&[line]);
            assert_eq!(config.get(*key).unwrap_or(&Value::Null), expected, "{line}");
        }
    }

    #[test]
    fn a_command_set_before_an_entry_point_stays() {
        let config = applied(&["CMD [\"c\"]", "ENTRYPOINT [\"/e\"]"]);
        assert_eq!(config["Cmd"], json!(["c"]));
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for line in [
            "",
            "CMD",
            "RUN x",
            "FROM y",
            "EXPOSE x",
            "EXPOSE 99999",
            "ENV A",
            "ENV ='x'",
            "LABEL \"open=1",
            "USER a b",
            "WORKDIR",
            "VOLUME []",
        ] {
            assert!(line.parse::<Change>().is_err(), "{line}");
        }
    }
}
