//! `rovl stat`: the live counters of a mount.

use std::path::{Path, PathBuf};

use clap::Args;
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::{Failure, mounted, print};

/// Show the live counters of a mount.
#[derive(Debug, Args)]
pub struct StatArgs {
    /// Print the daemon's JSON object as it is
    #[arg(long)]
    json: bool,
    /// The mount point
    #[arg(value_name = "MERGED")]
    merged: PathBuf,
}

/// Runs `rovl stat`.
pub fn run(args: &StatArgs) -> Result<(), Failure> {
    let mounted = mounted::find(&args.merged)?;
    let counters = mounted
        .stat
        .map_err(|errno| unanswered(&args.merged, errno))?;
    if args.json {
        print(&format!("{}\n", counters.raw.trim_end()))
    } else {
        print(&table(&counters.fields))
    }
}

fn unanswered(merged: &Path, errno: Errno) -> Failure {
    let shown = merged.display();
    Failure::failed(match errno {
        Errno::NOTCONN => format!(
            "{shown} is a rovl mount whose daemon has died; `rovl umount {shown}` takes it away"
        ),
        Errno::ACCESS | Errno::PERM => {
            format!("{shown} is a rovl mount of another user, who alone may look into it")
        }
        other => format!("{shown} is a rovl mount, but its daemon tells no counters: {other}"),
    })
}

/// Names and values in two columns; lists get a line for each element, objects a line for each member.
fn table(fields: &Map<String, Value>) -> String {
    let mut rows = Vec::new();
    for (name, value) in fields {
        flatten(name, value, &mut rows);
    }
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0);
    rows.iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"))
        .collect()
}

fn flatten(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                flatten(&format!("{name}.{member}"), value, rows);
            }
        }
        Value::Array(elements) => {
            for (at, element) in elements.iter().enumerate() {
                flatten(if at == 0 { name } else { "" }, element, rows);
            }
        }
        Value::String(text) => rows.push((name.to_owned(), text.clone())),
        Value::Number(number) if name.ends_with("_bytes") => {
            let exact = number.to_string();
            let shown = number
                .as_u64()
                .and_then(human)
                .map(|near| format!("{exact} ({near})"));
            rows.push((name.to_owned(), shown.unwrap_or(exact)));
        }
        other => rows.push((name.to_owned(), other.to_string())),
    }
}

/// Bytes in the largest binary unit that keeps them at or above 1; `None` below 1 KiB.
fn human(bytes: u64) -> Option<String> {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (power, unit) = units
        .iter()
        .enumerate()
        .map(|(at, unit)| (10 * (at + 1), unit))
        .rfind(|(power, _)| bytes >> power > 0)?;
    let tenths = (u128::from(bytes) * 10) >> power;
    Some(format!("{}.{} {unit}", tenths / 10, tenths % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_one_column() {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(
            r#"{"pid":42,"lowers":["/a","/b"],"copy_up_bytes":1572864,"requests":{"LOOKUP":7},"upper":null}"#,
        ) else {
            panic!("an object");
        };
        assert_eq!(
            table(&fields),
            "copy_up_bytes    1572864 (1.5 MiB)\n\
             lowers           /a\n\
             \x20                /b\n\
             pid              42\n\
             requests.LOOKUP  7\n\
             upper            null\n"
        );
        assert_eq!(table(&Map::new()), "");
    }

    #[test]
    fn bytes_are_shown_in_units_too() {
        assert_eq!(human(1023), None);
        assert_eq!(human(1024), Some("1.0 KiB".into()));
        assert_eq!(human(1 << 40), Some("1.0 TiB".into()));
        assert_eq!(human(u64::MAX), Some("15.9 EiB".into()));
    }
}
