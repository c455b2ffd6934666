//! The load behind `make show-swap`: open, and every answer is held against the version that it names. `scripts/show_swap.py` runs
//! it; by itself it does nothing.
//!
//! The scores of each version are asked for beforehand through `x-mainstay-arm`, so the server needs `rollouts.arm_header = true`.

mod admin;
mod http;
mod load;
mod report;

use std::rc::Rc;
use std::time::Duration;

use load::Load;
use serde_json::json;

const USAGE: &str =
    "usage: swap MODE --http ADDRESS --rows FILE [--rate N] [--seconds N] [--connections N] [--customers N]

  saturate     as many as the connections can do
  swaps        blocks of load with and without swaps; also --admin ADDRESS, --pid N, --pairs N, --swaps N, --every-ms N
  watch        load until standard input ends; each line of it begins a part of the report";

/// What was asked for on the command line.
struct Asked(Vec<String>);

impl Asked {
    fn text(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|word| word == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn needed(&self, name: &str) -> &str {
        self.text(name).unwrap_or_else(|| panic!("{name} is missing\n{USAGE}"))
    }

    fn number(&self, name: &str, usual: u64) -> u64 {
        self.text(name)
            .map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("{name} {text}: expected a number")))
    }
}

fn main() {
    let asked = Asked(std::env::args().skip(1).filter(|word| word != "--bench").collect());
    let Some(mode) = asked.0.first().cloned() else {
        // `cargo bench` runs every bench; this one needs a server.
        println!("swap: nothing to do by itself; `make show-swap` runs it");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, run(&mode, &asked));
}

async fn run(mode: &str, asked: &Asked) {
    let address = asked.needed("--http").parse().expect("--http is an address");
    let rows = std::fs::read_to_string(asked.needed("--rows")).expect("a file of rows");
    let rows: Vec<&str> = rows.lines().collect();
    let rate = asked.number("--rate", 1_000);
    let mut load = Load::new(address, &rows, rate, asked.number("--customers", 20_000));
    let (asked_for, differing) = load.learn().await;
    load.open_all(asked.number("--connections", 64)).await;
    let load = Rc::new(load);
    let learnt = json!({"rows": rows.len(), "versions": asked_for, "differing": differing});
    match mode {
        "saturate" => {
            let began = load.begin(true);
            tokio::time::sleep(Duration::from_secs(asked.number("--seconds", 5))).await;
            let per_second = load.answered() as f64 / began.elapsed().as_secs_f64();
            load.end().await;
            println!("{}", json!({"per_second": per_second, "learnt": learnt, "load": load.report()}));
        }
        "swaps" => {
            let swaps = admin::Swaps::of(asked);
            load.begin(false);
            let made = swaps.make(&load).await;
            load.end().await;
            println!("{}", json!({"learnt": learnt, "swaps": made, "load": load.report()}));
        }
        "watch" => {
            load.begin(false);
            println!("{}", json!({"learnt": learnt}));
            let (send, mut lines) = tokio::sync::mpsc::unbounded_channel();
            std::thread::spawn(move || {
                std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| send.send(line))
            });
            while let Some(line) = lines.recv().await {
                load.mark(&line);
            }
            load.end().await;
            println!("{}", json!({"load": load.report()}));
        }
        _ => panic!("no such mode\n{USAGE}"),
    }
}
