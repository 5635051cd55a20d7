//! Showing the log of a process while it grows.

use std::future::poll_fn;
use std::pin::Pin;

use futures_core::Stream;
use procession::{ObservedProcessEvent, Subscription};
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt, Stderr, Stdout, stderr, stdout};

use crate::exit::{Failure, say};

/// Where the output of a process goes.
struct Screen {
    stdout: Stdout,
    stderr: Stderr,
    json: bool,
}

/// Shows what a process says until its log ends: its output on the streams that it wrote to, or
/// every event as a line of JSON.
pub(crate) async fn follow(mut events: Subscription, json: bool) -> Result<(), Failure> {
    let mut screen = Screen {
        stdout: stdout(),
        stderr: stderr(),
        json,
    };
    while let Some(event) = poll_fn(|cx| Pin::new(&mut events).poll_next(cx)).await {
        screen.show(&event?).await?;
    }
    Ok(())
}

impl Screen {
    async fn show(&mut self, event: &ObservedProcessEvent) -> Result<(), Failure> {
        if self.json {
            let line = serde_json::to_string(event)? + "\n";
            return write(&mut self.stdout, &line).await;
        }
        match event.event_type.as_str() {
            "output.stdout" => write(&mut self.stdout, &text(&event.payload)).await,
            "output.stderr" => write(&mut self.stderr, &text(&event.payload)).await,
            "output.truncated" => {
                say(&format!(
                    "output beyond {} bytes is neither shown nor kept (--max-output-bytes)",
                    event.payload["max_output_bytes"]
                ));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// Written when this returns, so that the next stream's bytes come after it.
async fn write(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> Result<(), Failure> {
    let written = async {
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await
    };
    written.await.map_err(Failure::Output)
}

/// The output that an event stands for, byte for byte but for what was no UTF-8.
fn text(payload: &Value) -> String {
    let lines = payload["lines"].as_array().map_or(&[][..], Vec::as_slice);
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        text.push_str(line.as_str().unwrap_or_default());
        if at + 1 < lines.len() || payload["partial"] != true {
            text.push('\n');
        }
    }
    text
}
