//! Starting, or not: each thing that can be missing or wrong is one clear line, with its exit code, and never a panic.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::service::customer;

fn mainstay(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Exit code and standard error of a start that fails.
fn failed(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = mainstay(arguments).output().expect("a run");
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
    // What was logged on the way is not the message.
    let message = text.lines().filter(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n");
    (status.code().expect("an exit code"), message)
}

const PORTS: [&str; 6] =
    ["--set", "http.listen=127.0.0.1:0", "--set", "admin.listen=127.0.0.1:0", "--set", "ledger.promise=off"];

fn serve_with(setting: &str) -> (i32, String) {
    failed(&[["serve"].as_slice(), &PORTS, &["--set", setting]].concat())
}

#[test]
fn a_missing_library_is_one_line_with_the_way_out() {
    let (code, text) = serve_with("runtime.library=/nowhere/libonnxruntime.so");
    assert_eq!(code, 69);
    assert_eq!(
        text,
        "mainstay: ONNX Runtime at /nowhere/libonnxruntime.so: No such file or directory (os error 2); run `make runtime`, or point runtime.library at libonnxruntime.so"
    );
}

#[test]
fn a_broken_library_is_one_line_too() {
    let library = std::env::var("MAINSTAY__RUNTIME__LIBRARY").expect("the library");
    let bytes = std::fs::read(library).expect("the library");
    let directory = tempfile::tempdir().expect("a directory");
    for (name, bytes, told) in [
        ("empty.so", &[][..], "is not a 64-bit ELF shared library"),
        (
            "text.so",
            &b"not a library at all, but longer than sixty-four bytes of an ELF header"[..],
            "is not a 64-bit ELF shared library",
        ),
        ("cut.so", &bytes[..bytes.len() / 2], "is truncated"),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let (code, text) = serve_with(&format!("runtime.library={}", path.display()));
        assert_eq!((code, text.lines().count()), (69, 1), "{text}");
        assert!(text.contains(told), "{text}");
    }
    // A whole library that is another one.
    let other = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    let other = other.into_iter().find(|path| std::path::Path::new(path).exists()).expect("the C library");
    let (code, text) = serve_with(&format!("runtime.library={other}"));
    assert_eq!((code, text.lines().count()), (69, 1), "{text}");
}

#[test]
fn a_missing_model_and_policy_are_told() {
    let (code, text) = serve_with("models.serve=[{ name = \"telco-churn\", version = \"9.9.9\" }]");
    assert_eq!(
        (code, text.as_str()),
        (
            69,
            "mainstay: cannot serve telco-churn 9.9.9: models/telco-churn/9.9.9 cannot be read: No such file or directory (os error 2)"
        )
    );
    let (code, text) = serve_with("models.policy=nowhere.toml");
    assert_eq!(code, 69);
    assert!(text.contains("cannot read the policy nowhere.toml"), "{text}");
}

#[test]
fn every_problem_of_a_configuration_is_told_before_a_port_is_bound() {
    let (code, text) = failed(&["serve", "--set", "http.lisen=x", "--set", "limits.depth_max=0"]);
    assert_eq!(code, 64);
    assert!(text.contains("did you mean \"http.listen\"?") && text.contains("limits.depth_max"), "{text}");
    assert_eq!(failed(&["serv"]).0, 64);
}

#[test]
fn tls_that_cannot_be_used_is_told() {
    let (code, text) = serve_with("http.tls.certificate=Cargo.toml");
    assert_eq!(code, 64);
    assert!(text.contains("http.tls.key (default): expected the private key of the certificate"), "{text}");
    let serve = |certificate: &str| {
        let certificate = format!("admin.tls.certificate={certificate}");
        let tls = ["--set", certificate.as_str(), "--set", "admin.tls.key=Cargo.toml"];
        failed(&[["serve"].as_slice(), &PORTS, &tls].concat())
    };
    let told = "mainstay: admin.tls: nowhere.pem cannot be read: No such file or directory (os error 2)";
    assert_eq!(serve("nowhere.pem"), (69, told.to_owned()));
    let (code, text) = serve("Cargo.toml");
    assert!(code == 69 && text.contains("admin.tls: Cargo.toml holds no certificate in PEM"), "{text}");
}

#[test]
fn a_secret_that_cannot_sign_is_told_before_anything_is_recorded() {
    let directory = tempfile::tempdir().expect("a directory");
    let ledger = directory.path().join("ledger");
    let dir = format!("ledger.dir={}", ledger.display());
    let serve = |secret: &str| {
        let secret = format!("retraining.secret_file={secret}");
        let set = [dir.as_str(), "ledger.promise=committed", "retraining.url=https://example.com/hook", &secret];
        failed(&[["serve"].as_slice(), &PORTS, &set.map(|setting| ["--set", setting]).concat()].concat())
    };
    let told = "mainstay: retraining: the secret file nowhere cannot be read: No such file or directory (os error 2)";
    assert_eq!(serve("nowhere"), (69, told.to_owned()));
    let (code, text) = serve("");
    assert!(code == 69 && text.contains("MAINSTAY_RETRAINING_SECRET"), "{text}");
    assert!(!ledger.exists());
    let (code, text) = serve_with("retraining.url=http://example.com/hook");
    assert!(code == 64 && text.contains("retraining.url (--set retraining.url): expected https"), "{text}");
}

#[test]
fn a_port_in_use_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let (code, text) = serve_with(&format!("http.listen={address}"));
    assert_eq!(code, 69);
    assert!(
        text.contains(&format!("cannot listen on {address}; stop what listens there, or set http.listen")),
        "{text}"
    );
}

#[test]
fn verify_checks_offline() {
    let run = |arguments: &[&str]| {
        let output = mainstay(arguments).output().expect("a run");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) = run(&["verify", "bundle", "models/telco-churn/1.0.0"]);
    assert_eq!(code, Some(0));
    assert!(text.starts_with("telco-churn 1.0.0: a legal bundle"), "{text}");
    assert_eq!(run(&["verify", "policy", "models/policy/four-bands.toml"]).0, Some(0));
    assert_eq!(run(&["verify", "config", "src/default.toml"]).0, Some(0));
    assert_eq!(failed(&["verify", "policy", "Cargo.toml"]).0, 65);
    assert_eq!(failed(&["verify", "bundle", "models/policy"]).0, 65);
    assert_eq!(failed(&["verify", "config", "models/policy/default.toml"]).0, 64);
}

#[test]
fn health_tells_by_its_exit_code() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let free = taken.local_addr().expect("an address");
    drop(taken);
    assert_eq!(failed(&["health", "--set", &format!("http.listen={free}")]).0, 69);
    let service = crate::service::shared();
    let set = format!("http.listen={}", service.data);
    assert!(mainstay(&["health", "--set", &set]).output().expect("a run").status.success());
}

/// A process that ends with the test, whatever becomes of that.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that is ready, with what it logs.
struct Started {
    process: Process,
    lines: Lines<BufReader<ChildStderr>>,
    ready: Value,
    logged: String,
}

impl Started {
    fn with(arguments: &[&str]) -> Self {
        let mut process = mainstay(arguments).stderr(Stdio::piped()).spawn().expect("a start");
        let mut lines = BufReader::new(process.stderr.take().expect("its log")).lines();
        let mut logged = String::new();
        let ready = line_of(&mut lines, &mut logged, "ready");
        Self { process: Process(process), lines, ready, logged }
    }
}

/// The next line of the log with `message`; what comes before is kept in `logged`.
fn line_of(lines: &mut Lines<BufReader<ChildStderr>>, logged: &mut String, message: &str) -> Value {
    loop {
        let line = lines.next().expect("a line").expect("text");
        *logged += &line;
        let line: Value = serde_json::from_str(&line).expect("a line is JSON");
        if line["message"] == message {
            return line;
        }
    }
}

fn signal(process: &Process, signal: Signal) {
    kill_process(Pid::from_child(&process.0), signal).expect("a signal");
}

/// A second signal does not wait for what the first one waits for, whichever of the two it is.
#[test]
fn a_second_signal_ends_the_process_at_once() {
    // A minute is what it would take else.
    let minute = ["--set", "drain.timeout_ms=60000", "--set", "limits.body_timeout_ms=60000"];
    let patient = [["serve"].as_slice(), &PORTS, &minute].concat();
    for second in [Signal::TERM, Signal::INT] {
        let Started { mut process, mut lines, ready, mut logged } = Started::with(&patient);
        let address = ready["http"].as_str().expect("an address");
        // A request whose body never comes, and that is surely being answered: the service says "continue" only then.
        let mut stream = TcpStream::connect(address).expect("a connection");
        let head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("written");
        assert_eq!(stream.read(&mut [0; 8]).expect("an answer"), 8);
        signal(&process, Signal::TERM);
        line_of(&mut lines, &mut logged, "draining");
        // It waits for that request by then: nobody is let in any more.
        while TcpStream::connect(address).is_ok() {
            std::thread::yield_now();
        }
        let told = Instant::now();
        signal(&process, second);
        assert_eq!(process.0.wait().expect("an end").code(), Some(130));
        assert!(told.elapsed() < Duration::from_secs(30), "{:?}", told.elapsed());
    }
}

/// What waits for a restart is said at every SIGHUP until then, and what was taken over only once.
#[test]
fn what_waits_for_a_restart_is_told_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("mainstay.toml");
    let config = path.to_str().expect("text");
    std::fs::write(&path, "").expect("written");
    let Started { mut process, mut lines, mut logged, .. } =
        Started::with(&[["serve", "--config", config].as_slice(), &PORTS].concat());
    let text = "[log]\nformat = \"text\"\nlevel = \"debug\"\n[rollouts]\nshadow_queue_max = 7\n";
    std::fs::write(&path, text).expect("written");
    for changed in ["log.level", ""] {
        signal(&process, Signal::HUP);
        let told = line_of(&mut lines, &mut logged, "configuration read again");
        let mut waits: Vec<&str> = told["needs_a_restart"].as_str().expect("a list").split(", ").collect();
        waits.sort_unstable();
        assert_eq!((told["changed"].as_str(), waits), (Some(changed), vec!["log.format", "rollouts.shadow_queue_max"]));
    }
    signal(&process, Signal::TERM);
    assert_eq!(process.0.wait().expect("an end").code(), Some(0));
}

/// The whole life of the process: ready, a bad and a good request, SIGTERM, exit code 0. Nothing personal is in its log.
#[tokio::test]
async fn the_process_starts_answers_and_stops_and_logs_nothing_personal() {
    let log = [["serve"].as_slice(), &PORTS, &["--set", "log.request_share=1.0", "--set", "log.level=debug"]].concat();
    let Started { mut process, lines, ready, mut logged } = Started::with(&log);
    let secret = "very-personal-value";
    let client = reqwest::Client::new();
    let url = format!("http://{}/v1/score", ready["http"].as_str().expect("an address"));
    let mut good = customer();
    good["customer_id"] = secret.into();
    let mut bad = good.clone();
    bad["features"]["tenure"] = secret.into();
    for (body, status) in [(&good, 200), (&bad, 422)] {
        assert_eq!(client.post(&url).json(body).send().await.expect("an answer").status(), status);
    }
    let metrics = client.get(format!("http://{}/metrics", ready["admin"].as_str().expect("an address")));
    let metrics = metrics.send().await.expect("an answer").text().await.expect("text");
    signal(&process, Signal::TERM);
    logged.extend(lines.map(|line| line.expect("text") + "\n"));
    assert_eq!(process.0.wait().expect("an end").code(), Some(0));
    assert!(logged.contains("\"status\":422") && logged.contains("stopped"), "{logged}");
    assert!(!logged.contains(secret) && !metrics.contains(secret));
    std::io::stdout().flush().expect("flushed");
}

/// A damaged file is told by its name, with what to do, and never served; undamaged again, it is as before.
#[test]
fn what_is_damaged_is_told_with_the_way_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let ports = &PORTS[..4];
    let ledger = directory.path().join("ledger");
    let dir = format!("ledger.dir={}", ledger.display());
    let serve = |more: &[&str]| failed(&[["serve"].as_slice(), ports, &["--set", &dir], more].concat());
    // A ledger with something in it.
    drop(crate::service::Service::start_in(&ledger, &[]));
    let (database, keys) = (ledger.join("ledger.db"), ledger.join("ledger.keys"));
    let whole = (std::fs::read(&database).expect("a database"), std::fs::read(&keys).expect("keys"));
    let with = |database_bytes: &[u8], key_bytes: &[u8]| {
        std::fs::write(&database, database_bytes).expect("written");
        std::fs::write(&keys, key_bytes).expect("written");
        serve(&[])
    };
    let restore = "is damaged: `mainstay ledger restore FILE` puts a backup in its place";
    for damaged in [&whole.0[..9_000], &[b'x'; 9_000], &whole.0[..whole.0.len() / 2]] {
        let (code, text) = with(damaged, &whole.1);
        assert!(code == 65 && text.contains(restore) && text.contains("ledger"), "{code} {text}");
    }
    let (code, text) = with(&whole.0, &whole.1[..20]);
    assert!(code == 69 && text.contains("is not a key file: put a copy of the one in its place"), "{code} {text}");
    std::fs::write(&keys, &whole.1).expect("written");
    let aside = directory.path().join("aside");
    std::fs::rename(&keys, &aside).expect("moved");
    let (code, text) = serve(&[]);
    assert!(code == 69 && text.contains("is missing, but the ledger was written with it: put it back"), "{text}");
    std::fs::rename(&aside, &keys).expect("moved");
    drop(crate::service::Service::start_in(&ledger, &[]));

    // A bundle of which one byte is another one.
    let bundle = directory.path().join("telco-churn/1.0.0");
    std::fs::create_dir_all(&bundle).expect("made");
    for entry in std::fs::read_dir("models/telco-churn/1.0.0").expect("a bundle") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("read");
        if path.ends_with("model.onnx") {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        std::fs::write(bundle.join(path.file_name().expect("a name")), bytes).expect("written");
    }
    let models = format!("models.dir={}", directory.path().display());
    let only = "models.serve=[{ name = \"telco-churn\", version = \"1.0.0\" }]";
    let (code, text) = serve(&["--set", &models, "--set", only]);
    assert!(code == 65 && text.contains("model.onnx: its sha256 is"), "{code} {text}");

    let cut = directory.path().join("policy.toml");
    let policy = std::fs::read_to_string("models/policy/default.toml").expect("a policy");
    std::fs::write(&cut, &policy[..policy.len() / 2]).expect("written");
    let (code, text) = serve(&["--set", &format!("models.policy={}", cut.display())]);
    assert!(code == 65 && text.contains("policy.toml"), "{code} {text}");

    let config = directory.path().join("mainstay.toml");
    std::fs::write(&config, "[http\nlisten = 1").expect("written");
    let (code, text) = serve(&["--config", config.to_str().expect("text")]);
    assert!(code == 64 && text.contains("mainstay.toml") && text.contains("line 1"), "{code} {text}");
}
