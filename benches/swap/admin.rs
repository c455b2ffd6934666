//! Swaps under load: promote and roll back in turn, at fixed times, in blocks between which nothing is swapped.

use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Asked;
use crate::http::{Connection, post};
use crate::load::Load;

/// What is to be swapped, and when.
pub(crate) struct Swaps {
    admin: std::net::SocketAddr,
    pid: u64,
    /// Blocks with swaps, each behind one without.
    pairs: u64,
    swaps: u64,
    every: Duration,
}

impl Swaps {
    pub(crate) fn of(asked: &Asked) -> Self {
        Self {
            admin: asked.needed("--admin").parse().expect("--admin is an address"),
            pid: asked.number("--pid", 0),
            pairs: asked.number("--pairs", 10),
            swaps: asked.number("--swaps", 500),
            every: Duration::from_millis(asked.number("--every-ms", 100)),
        }
    }

    /// Makes all swaps: how long each took, and what the server's memory was behind it.
    pub(crate) async fn make(&self, load: &Rc<Load>) -> Value {
        let mut connection = Connection::open(self.admin).await.expect("the admin plane");
        let in_block = self.swaps / self.pairs;
        let (mut flips_us, mut moves_ms, mut resident, mut refused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // Not a part of the comparison: connections and caches settle.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for _ in 0..self.pairs {
            load.mark("quiet");
            tokio::time::sleep(self.every * in_block as u32).await;
            load.mark("swapping");
            let begun = Instant::now();
            for at in 0..in_block {
                tokio::time::sleep_until((begun + self.every * at as u32).into()).await;
                let made = flips_us.len() as u64;
                let verb = if made.is_multiple_of(2) { "promote" } else { "rollback" };
                load.settle(made, None);
                let asked = Instant::now();
                let request = post(&format!("/v1/slots/telco-churn/{verb}"), "", r#"{"by":"show-swap"}"#);
                let (status, body) = connection.ask(&request).await.expect("an answer of the admin plane");
                let answer: Value = serde_json::from_slice(body).unwrap_or_default();
                if status != 200 {
                    refused.push(format!("{verb}: {status} {answer}"));
                    continue;
                }
                moves_ms.push(asked.elapsed().as_micros() as f64 / 1e3);
                flips_us.push(answer["flip_us"].as_f64());
                load.settle(made, champion(&answer));
                resident.push(self.resident());
            }
            tokio::time::sleep_until((begun + self.every * in_block as u32).into()).await;
        }
        load.mark("end");
        json!({"flips_us": flips_us, "moves_ms": moves_ms, "resident": resident, "refused": refused})
    }

    /// Resident memory of the server, in bytes.
    fn resident(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let kilobytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        kilobytes.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
    }
}

/// The version of the champion after a move.
fn champion(answer: &Value) -> Option<&str> {
    let slots = answer["slots"]["slots"].as_array()?;
    slots.iter().find(|slot| slot["role"] == "champion").and_then(|slot| slot["version"].as_str())
}
