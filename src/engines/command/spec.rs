//! The payload of a command: what it may say, and the operating-system command it stands for.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use super::CommandEngine;
use crate::engines::PayloadProblem;

/// A checked payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandSpec {
    program: String,
    args: Vec<String>,
    cwd: Option<String>,
    /// What differs from the runtime's environment; `None` removes.
    env: BTreeMap<String, Option<String>>,
    pub(super) stdin: Option<String>,
    pub(super) max_output_bytes: u64,
}

const SHELL: &str = "/bin/sh";
const FIELDS: [&str; 7] = [
    "program",
    "args",
    "shell",
    "cwd",
    "env",
    "stdin",
    "max_output_bytes",
];

impl CommandSpec {
    pub(super) fn parse(payload: &Value) -> Result<Self, PayloadProblem> {
        let Value::Object(fields) = payload else {
            return Err(PayloadProblem::new("", "is not an object"));
        };
        if let Some(unknown) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
            return Err(PayloadProblem::new(
                pointer(&[unknown]),
                format!("is unknown; known are {}", FIELDS.join(", ")),
            ));
        }
        let (program, args) = invocation(fields)?;
        let cwd = optional_text(fields, "cwd")?;
        if cwd
            .as_deref()
            .is_some_and(|cwd| !Path::new(cwd).is_absolute())
        {
            return Err(PayloadProblem::new(
                "/cwd",
                "is not an absolute path; a later attempt may run in a runtime started elsewhere",
            ));
        }
        Ok(Self {
            program,
            args,
            cwd,
            env: environment(fields)?,
            // Input is data: unlike the rest, it may hold NUL.
            stdin: match fields.get("stdin") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(text.clone()),
                Some(_) => return Err(PayloadProblem::new("/stdin", "is not a string")),
            },
            max_output_bytes: max_output_bytes(fields)?,
        })
    }

    pub(super) fn program(&self) -> &str {
        &self.program
    }

    pub(super) fn cwd(&self) -> Option<&str> {
        self.cwd.as_deref()
    }

    /// The command, not yet started: pipes for its output, nothing or a pipe for its input.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .stdin(if self.stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

fn invocation(fields: &Map<String, Value>) -> Result<(String, Vec<String>), PayloadProblem> {
    match (
        optional_text(fields, "program")?,
        optional_text(fields, "shell")?,
    ) {
        (Some(_), Some(_)) => Err(PayloadProblem::new(
            "/shell",
            "stands beside a program; only one of the two may",
        )),
        (None, None) => Err(PayloadProblem::new("", "has neither a program nor a shell")),
        (None, Some(_)) if fields.get("args").is_some_and(|args| !args.is_null()) => Err(
            PayloadProblem::new("/args", "stands beside a shell, which takes none"),
        ),
        (None, Some(script)) => Ok((SHELL.to_owned(), vec!["-c".to_owned(), script])),
        (Some(program), None) => Ok((program, arguments(fields)?)),
    }
}

fn arguments(fields: &Map<String, Value>) -> Result<Vec<String>, PayloadProblem> {
    match fields.get("args") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(args)) => args
            .iter()
            .enumerate()
            .map(|(at, arg)| text(arg, || pointer(&["args", &at.to_string()])))
            .collect(),
        Some(_) => Err(PayloadProblem::new("/args", "is not an array")),
    }
}

fn environment(
    fields: &Map<String, Value>,
) -> Result<BTreeMap<String, Option<String>>, PayloadProblem> {
    let env = match fields.get("env") {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(env)) => env,
        Some(_) => return Err(PayloadProblem::new("/env", "is not an object")),
    };
    env.iter()
        .map(|(name, value)| {
            let path = || pointer(&["env", name]);
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(PayloadProblem::new(
                    path(),
                    "is no name of a variable: empty, or with = or NUL in it",
                ));
            }
            let value = match value {
                Value::Null => None,
                Value::Bool(_)
                | Value::Number(_)
                | Value::String(_)
                | Value::Array(_)
                | Value::Object(_) => Some(text(value, path)?),
            };
            Ok((name.clone(), value))
        })
        .collect()
}

fn max_output_bytes(fields: &Map<String, Value>) -> Result<u64, PayloadProblem> {
    match fields.get("max_output_bytes") {
        None | Some(Value::Null) => Ok(CommandEngine::OUTPUT_BYTES_DEFAULT),
        Some(value) => value
            .as_u64()
            .filter(|bytes| *bytes <= CommandEngine::OUTPUT_BYTES_MAX)
            .ok_or_else(|| {
                PayloadProblem::new(
                    "/max_output_bytes",
                    format!(
                        "is no integer from 0 to {}",
                        CommandEngine::OUTPUT_BYTES_MAX
                    ),
                )
            }),
    }
}

/// A text that may be absent, but not empty.
fn optional_text(
    fields: &Map<String, Value>,
    name: &str,
) -> Result<Option<String>, PayloadProblem> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let text = text(value, || pointer(&[name]))?;
            if text.is_empty() {
                return Err(PayloadProblem::new(pointer(&[name]), "is empty"));
            }
            Ok(Some(text))
        }
    }
}

fn text(value: &Value, path: impl Fn() -> String) -> Result<String, PayloadProblem> {
    let Value::String(text) = value else {
        return Err(PayloadProblem::new(path(), "is not a string"));
    };
    if text.contains('\0') {
        return Err(PayloadProblem::new(path(), "contains a NUL byte"));
    }
    Ok(text.clone())
}

/// A JSON pointer (RFC 6901).
fn pointer(parts: &[&str]) -> String {
    parts.iter().fold(String::new(), |path, part| {
        path + "/" + &part.replace('~', "~0").replace('/', "~1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bad_payload_is_refused_with_the_path_of_what_is_wrong() {
        for (payload, path) in [
            (json!("ls"), ""),
            (json!({}), ""),
            (json!({ "cwd": "/" }), ""),
            (json!({ "program": "ls", "shell": "ls" }), "/shell"),
            (json!({ "shell": "ls", "args": [] }), "/args"),
            (json!({ "program": "" }), "/program"),
            (json!({ "shell": "" }), "/shell"),
            (json!({ "program": 7 }), "/program"),
            (json!({ "program": "l\0s" }), "/program"),
            (json!({ "program": "ls", "args": "-l" }), "/args"),
            (json!({ "program": "ls", "args": ["-l", 7] }), "/args/1"),
            (json!({ "program": "ls", "args": ["a", "b\0"] }), "/args/1"),
            (json!({ "program": "ls", "cwd": "here" }), "/cwd"),
            (json!({ "program": "ls", "cwd": ["/"] }), "/cwd"),
            (json!({ "program": "ls", "env": [] }), "/env"),
            (
                json!({ "program": "ls", "env": { "A/B=": "" } }),
                "/env/A~1B=",
            ),
            (json!({ "program": "ls", "env": { "": "" } }), "/env/"),
            (json!({ "program": "ls", "env": { "A": 1 } }), "/env/A"),
            (json!({ "program": "ls", "env": { "A": "\0" } }), "/env/A"),
            (json!({ "program": "ls", "stdin": 1 }), "/stdin"),
            (
                json!({ "program": "ls", "max_output_bytes": -1 }),
                "/max_output_bytes",
            ),
            (
                json!({ "program": "ls", "max_output_bytes": 1.5 }),
                "/max_output_bytes",
            ),
            (
                json!({ "program": "ls", "max_output_bytes": u64::MAX }),
                "/max_output_bytes",
            ),
            (json!({ "program": "ls", "clear~env": true }), "/clear~0env"),
        ] {
            match CommandSpec::parse(&payload) {
                Err(problem) => assert_eq!(problem.path, path, "{payload}"),
                Ok(_) => panic!("{payload} was accepted"),
            }
        }
    }

    #[test]
    fn what_is_absent_has_its_default() {
        let spec = CommandSpec::parse(&json!({ "program": "ls", "args": null, "env": null }))
            .expect("a program is enough");
        assert_eq!(
            spec,
            CommandSpec {
                program: "ls".to_owned(),
                args: vec![],
                cwd: None,
                env: BTreeMap::new(),
                stdin: None,
                max_output_bytes: 8_388_608,
            }
        );
    }

    #[test]
    fn a_shell_is_run_by_the_shell() {
        let spec = CommandSpec::parse(&json!({
            "shell": "echo $A", "cwd": "/", "env": { "A": "a", "B": null },
            "stdin": "a\0b", "max_output_bytes": 0,
        }))
        .expect("complete");
        assert_eq!(spec.program, "/bin/sh");
        assert_eq!(spec.args, ["-c", "echo $A"]);
        assert_eq!(spec.stdin.as_deref(), Some("a\0b"));
        assert_eq!(spec.max_output_bytes, 0);
        assert_eq!(spec.env["B"], None);
    }
}
