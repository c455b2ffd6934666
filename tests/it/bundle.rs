//! What is wrong with a bundle, found before ONNX Runtime sees it. Each test breaks a copy of a real one.

use std::fs;
use std::path::PathBuf;

use mainstay::domain::record;
use mainstay::model::{Choice, Error, LoadOptions, Model, Runtime};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::service::config;

struct Copy {
    _root: tempfile::TempDir,
    path: PathBuf,
}

/// A copy of a bundle to break.
fn copy(bundle: &str) -> Copy {
    copy_of("models", bundle)
}

fn copy_of(directory: &str, bundle: &str) -> Copy {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().join(bundle);
    fs::create_dir_all(&path).expect("a directory");
    for entry in fs::read_dir(format!("{directory}/{bundle}")).expect("a bundle") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), path.join(entry.file_name())).expect("a copy");
    }
    Copy { _root: root, path }
}

impl Copy {
    /// Changes the card.
    fn card(&self, change: impl FnOnce(&mut Value)) -> &Self {
        let path = self.path.join("manifest.json");
        let mut card: Value = serde_json::from_slice(&fs::read(&path).expect("a card")).expect("JSON");
        change(&mut card);
        fs::write(path, card.to_string()).expect("written");
        self
    }

    /// Changes a JSON file and vouches for it anew.
    fn vouched(&self, name: &str, change: impl FnOnce(&mut Value)) -> &Self {
        let path = self.path.join(name);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
        change(&mut value);
        let text = value.to_string();
        let sha256: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(path, &text).expect("written");
        self.card(|card| card["files"][name] = json!({"bytes": text.len(), "sha256": sha256}))
    }

    fn load(&self) -> Result<Model, Error> {
        self.load_by(Choice::Auto)
    }

    fn load_by(&self, evaluator: Choice) -> Result<Model, Error> {
        let runtime = Runtime::load(&config(&[]).expect("a configuration").runtime.library).expect("ONNX Runtime");
        Model::load(runtime, &self.path, LoadOptions { lanes: 1, row_p99_us_max: 1_000_000, evaluator, turns: None })
    }

    /// The problems that it is refused for.
    fn problems(&self) -> String {
        match self.load() {
            Err(Error::Bundle { problems, .. } | Error::Probe { problems, .. }) => problems.join("\n"),
            Err(other) => panic!("refused for another reason: {other}"),
            Ok(_) => panic!("accepted"),
        }
    }
}

const TELCO: &str = "telco-churn/1.0.0";

#[test]
fn every_bundled_model_is_accepted_and_meets_its_gates() {
    for bundle in [TELCO, "telco-churn/1.1.0", "telco-churn/1.2.0", "mlc-churn/1.0.0"] {
        let model = copy(bundle).load().unwrap_or_else(|error| panic!("{bundle}: {error}"));
        let holdout = &model.card().metrics.holdout;
        assert!(
            holdout.auc.value >= 0.80 && holdout.precision_at_20.value >= 0.60 && holdout.ece.value <= 0.05,
            "{bundle}"
        );
        assert_eq!(model.card().metrics.gates.len(), 3, "{bundle}");
    }
}

#[test]
fn the_native_evaluator_answers_as_onnx_runtime_does() {
    for (bundle, tolerance) in
        [(TELCO, 0.0), ("telco-churn/1.1.0", 0.0), ("telco-churn/1.2.0", 1e-6), ("mlc-churn/1.0.0", 0.0)]
    {
        let copy = copy(bundle);
        let native = copy.load().expect("a legal bundle");
        let reference = copy.load_by(Choice::OnnxRuntime).expect("a legal bundle");
        assert_eq!(
            (native.evaluator(), reference.evaluator()),
            ("native", "onnxruntime"),
            "{}",
            native.evaluator_reason()
        );
        assert_eq!(reference.evaluator_reason(), "models.evaluator says so");
        let mut rows = Vec::new();
        for (customer, _) in crate::service::golden(bundle) {
            let features = customer["features"].as_object().expect("features");
            let value = |value: &Value| match value {
                Value::Number(number) => record::Value::Number(number.as_f64().expect("a number")),
                Value::String(text) => record::Value::Text(text.clone().into()),
                _ => record::Value::Null,
            };
            let features: Vec<(&str, record::Value)> =
                features.iter().map(|(name, v)| (name.as_str(), value(v))).collect();
            let mut row = vec![0.0; native.schema().columns()];
            native.schema().vectorize(&features, &mut row).expect("a customer");
            rows.extend(row);
        }
        let together = native.score_batch(&rows).expect("scores");
        for (row, together) in rows.chunks(native.schema().columns()).zip(together) {
            let expected = reference.score(row).expect("a score").value();
            let alone = native.score(row).expect("a score").value();
            assert!((alone - expected).abs() <= tolerance, "{bundle}: {alone} is not {expected}");
            assert_eq!(together.map(|score| score.value()), Some(alone), "{bundle}");
        }
    }
}

#[test]
fn onnx_runtime_serves_what_cannot_be_read() {
    let copy = copy_of("tests/data/bundles", "telco-churn/9.0.1-shifted");
    let model = copy.load().expect("a legal bundle");
    assert_eq!(model.evaluator(), "onnxruntime");
    assert_eq!(model.evaluator_reason(), "the graph is no sum of trees or columns that could be read");
}

#[test]
fn a_changed_byte_is_found_in_every_file() {
    for name in ["model.onnx", "baseline.json", "golden.json"] {
        let copy = copy(TELCO);
        let path = copy.path.join(name);
        let mut bytes = fs::read(&path).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).expect("written");
        let problems = copy.problems();
        assert!(problems.contains(name) && problems.contains("sha256"), "{problems}");
        bytes.truncate(middle);
        fs::write(&path, &bytes).expect("written");
        assert!(copy.problems().contains("bytes"));
    }
}

#[test]
fn a_missing_and_a_strange_file_are_named() {
    let copy = copy(TELCO);
    fs::remove_file(copy.path.join("golden.json")).expect("removed");
    fs::write(copy.path.join("notes.txt"), "").expect("written");
    assert_eq!(copy.problems(), "golden.json: is missing\nnotes.txt: does not belong into a bundle");
}

#[test]
fn a_typing_error_in_a_card_is_an_error() {
    let told = |change: fn(&mut Value)| copy(TELCO).card(change).problems();
    assert!(told(|card| card["titel"] = json!("x")).contains("unknown field `titel`"));
    assert!(told(|card| card["features"][0]["min"] = json!(1)).contains("unknown field `min`"));
    assert!(told(|card| drop(card.as_object_mut().expect("a card").remove("owner"))).contains("missing field `owner`"));
}

#[test]
fn every_broken_law_of_a_card_is_told_at_once() {
    let copy = copy(TELCO);
    copy.card(|card| {
        card["format"] = json!(2);
        card["calibration"]["a"] = json!(-1.0);
        card["metrics"]["gates"][0]["passed"] = json!(false);
        card["metrics"]["holdout"]["auc"]["low"] = json!(0.99);
        card["lineage"] = json!([]);
        card["features"][0]["range"] = json!({"min": 5, "max": 5});
        card["graph"]["input"] = json!("in");
    });
    insta::assert_snapshot!(copy.problems());
}

#[test]
fn the_card_must_fit_its_directory() {
    let told = copy(TELCO).card(|card| card["version"] = json!("1.0.1")).problems();
    assert_eq!(told, "version: \"1.0.1\" is not the directory's \"1.0.0\"");
}

#[test]
fn a_protected_feature_needs_a_waiver() {
    let rename = |card: &mut Value| card["features"][0]["name"] = json!("age");
    let broken = copy(TELCO);
    let told = broken.card(rename).problems();
    assert!(told.contains("feature \"age\": is a protected attribute"), "{told}");

    let waived = copy(TELCO);
    waived.vouched("baseline.json", |baseline| {
        let features = baseline["features"].as_object_mut().expect("features");
        let tenure = features.remove("tenure").expect("tenure");
        features.insert("age".into(), tenure);
    });
    waived.vouched("golden.json", |golden| {
        for row in golden["rows"].as_array_mut().expect("rows") {
            let features = row["features"].as_object_mut().expect("features");
            let tenure = features.remove("tenure").expect("tenure");
            features.insert("age".into(), tenure);
        }
    });
    waived.card(rename).card(|card| {
        card["waivers"] = json!([{"feature": "age", "reason": "an actuarial table is required by law", "granted_by": "legal", "granted_on": "2026-11-01"}]);
    });
    waived.load().expect("a waiver was granted");
}

#[test]
fn a_golden_row_that_is_off_fails_the_probe() {
    let copy = copy(TELCO);
    copy.vouched("golden.json", |golden| golden["rows"][3]["score"] = json!(0.123));
    let problems = copy.problems();
    assert!(problems.contains("golden row 3 alone") && problems.contains("the trainer's 0.123"), "{problems}");
}

#[test]
fn an_uplift_that_is_not_as_the_card_says_is_told() {
    const UPLIFT: &str = "telco-churn/9.0.5-uplift";
    let copy = || copy_of("tests/data/bundles", UPLIFT);
    assert!(copy().load().is_ok());
    let off = copy();
    off.vouched("golden.json", |golden| golden["rows"][3]["uplift"][1] = json!(0.9));
    assert!(off.problems().contains("golden row 3: the uplift of \"retention_offer\""), "{}", off.problems());
    let told = |change: fn(&mut Value)| copy().card(change).problems();
    insta::assert_snapshot!(
        [
            told(|card| card["uplift"]["output"] = json!("lift")),
            told(|card| card["uplift"]["interventions"][1]["action"] = json!("discount_email")),
            told(|card| card["uplift"]["interventions"][0]["qini"]["low"] = json!(1)),
            told(|card| card["uplift"]["interventions"] = json!([])),
            told(|card| card["uplift"] = Value::Null),
        ]
        .map(|told| told.lines().take(3).collect::<Vec<_>>().join("\n"))
        .join("\n\n")
    );
}

#[test]
fn a_golden_row_that_is_no_customer_is_told() {
    let told =
        copy(TELCO).vouched("golden.json", |golden| golden["rows"][0]["features"]["tenure"] = json!(-5)).problems();
    assert!(told.contains("golden: row 0: /features/tenure is out of range"), "{told}");
}

#[test]
fn a_baseline_that_does_not_add_up_is_told() {
    let told = copy(TELCO).vouched("baseline.json", |baseline| baseline["rows"] = json!(7)).problems();
    assert!(told.contains("do not add up to 7 rows"), "{told}");
}

#[test]
fn a_graph_of_another_model_is_told() {
    let copy = copy(TELCO);
    let other = fs::read("models/mlc-churn/1.0.0/model.onnx").expect("a graph");
    let sha256: String = Sha256::digest(&other).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(copy.path.join("model.onnx"), &other).expect("written");
    copy.card(|card| card["files"]["model.onnx"] = json!({"bytes": other.len(), "sha256": sha256}));
    let problems = copy.problems();
    assert!(problems.contains("the input is \"input\" [N, 17], float32; expected \"input\" [N, 22]"), "{problems}");
}
