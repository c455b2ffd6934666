//! The model card, `manifest.json`: its exact keys and its laws. Reading it from disk and comparing it with the files and the
//! graph beside it is the business of `model::bundle`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::feature::Feature;
use super::protected::why_protected;
use super::schema::Schema;
use super::uplift::Uplift;
use crate::domain::nearest::nearest;

/// The version of the contract that this server reads.
pub const FORMAT: u32 = 1;

/// The card of one bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Version of the bundle contract; [`FORMAT`].
    pub format: u32,
    /// Name of the model: `[a-z0-9][a-z0-9.-]{0,62}`.
    pub name: String,
    /// Version of the model, of the same form.
    pub version: String,
    /// When it was trained.
    pub created: Timestamp,
    /// One line for people.
    pub title: String,
    /// What it is.
    pub description: String,
    /// What it may be used for.
    pub intended_use: String,
    /// What it must not be used for, and where it is known to be weak.
    pub limits: Vec<String>,
    /// The team that answers for it.
    pub owner: String,
    /// Every data set that it saw.
    pub lineage: Vec<Source>,
    /// How it was trained.
    pub training: Training,
    /// How good it is.
    pub metrics: Metrics,
    /// From the graph's probability to the score.
    pub calibration: Calibration,
    /// The tensors of the graph.
    pub graph: GraphShape,
    /// What the graph says of interventions, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplift: Option<Uplift>,
    /// The feature dictionary, in the order of the columns.
    pub features: Vec<Feature>,
    /// Features that are allowed although they are protected or personal.
    pub waivers: Vec<Waiver>,
    /// Size and hash of the other files, by file name.
    pub files: BTreeMap<String, FileDigest>,
}

/// A data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Where it comes from.
    pub uri: String,
    /// Its licence, an SPDX expression.
    pub licence: String,
    /// Hash of its content, 64 hexadecimal digits.
    pub sha256: String,
    /// Its number of rows.
    pub rows: u64,
    /// The time that it covers.
    pub window: Window,
}

/// The time that a data set covers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First day, if known.
    pub from: Option<Date>,
    /// Last day, if known.
    pub to: Option<Date>,
    /// What else is known of it.
    pub note: String,
}

/// How a model was trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Library and version.
    pub framework: String,
    /// Algorithm.
    pub algorithm: String,
    /// What was predicted.
    pub target: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// How the rows were divided.
    pub split: String,
    /// Hyperparameters: numbers, strings and booleans.
    pub hyperparameters: BTreeMap<String, serde_json::Value>,
}

/// How good a model is, on the calibrated score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// By cross-validation.
    pub cross_validation: CrossValidation,
    /// On rows that the model never saw.
    pub holdout: Holdout,
    /// What the hold-out had to reach.
    pub gates: Vec<Gate>,
}

/// Metrics by cross-validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossValidation {
    /// Number of folds.
    pub folds: u32,
    /// Area under the ROC curve.
    pub auc: Estimate,
    /// Precision among the 20 % with the highest score.
    pub precision_at_20: Estimate,
    /// Brier score.
    pub brier: Estimate,
    /// Expected calibration error over bins of equal mass.
    pub ece: Estimate,
}

/// Metrics on the hold-out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holdout {
    /// Number of rows.
    pub rows: u64,
    /// Area under the ROC curve.
    pub auc: Estimate,
    /// Precision among the 20 % with the highest score.
    pub precision_at_20: Estimate,
    /// Brier score.
    pub brier: Estimate,
    /// Expected calibration error over bins of equal mass.
    pub ece: Estimate,
}

/// A value with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// A condition that the hold-out met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// The metric.
    pub metric: String,
    /// The condition, such as `>= 0.80`.
    pub rule: String,
    /// The value found.
    pub value: f64,
    /// Whether it was met.
    pub passed: bool,
}

/// How a probability becomes a score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// The method.
    pub method: Method,
    /// Slope, over 0.
    pub a: f64,
    /// Intercept.
    pub b: f64,
}

/// A method of calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Platt scaling on the log-odds; see `domain::score::Platt`.
    Platt,
}

/// The tensors of the graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphShape {
    /// Name of the input, float32 `[N, columns]`.
    pub input: String,
    /// Name of the output of probabilities, float32 `[N, output_columns]`.
    pub output: String,
    /// Columns of the input.
    pub columns: usize,
    /// The column of the output that is the probability of churn.
    pub output_column: usize,
    /// Columns of the output.
    pub output_columns: usize,
}

/// Who allowed a protected or personal feature, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// The feature.
    pub feature: String,
    /// Why it is allowed.
    pub reason: String,
    /// Who allowed it.
    pub granted_by: String,
    /// When.
    pub granted_on: Date,
}

/// Size and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Size in bytes.
    pub bytes: u64,
    /// Hash of its content, 64 hexadecimal digits.
    pub sha256: String,
}

impl Card {
    /// Every law of the card that is broken, as sentences that begin with their place; the schema when none is.
    pub fn check(&self) -> Result<Schema, Vec<String>> {
        let mut problems = Vec::new();
        if self.format != FORMAT {
            problems.push(format!("format: {} is not {FORMAT}, the only one that this server reads", self.format));
        }
        for (place, text) in [("name", &self.name), ("version", &self.version)] {
            if !is_identifier(text) {
                problems.push(format!(
                    "{place}: expected 1 to 63 of a-z, 0-9, '.' and '-', beginning with a letter or digit"
                ));
            }
        }
        let texts = [
            ("title", &self.title),
            ("description", &self.description),
            ("intended_use", &self.intended_use),
            ("owner", &self.owner),
            ("training.framework", &self.training.framework),
            ("training.algorithm", &self.training.algorithm),
            ("training.target", &self.training.target),
        ];
        for (place, _) in texts.iter().filter(|(_, text)| text.trim().is_empty()) {
            problems.push(format!("{place}: is empty"));
        }
        self.check_lineage(&mut problems);
        self.check_metrics(&mut problems);
        if !(self.calibration.a > 0.0 && self.calibration.a.is_finite() && self.calibration.b.is_finite()) {
            problems.push("calibration: expected a finite `a` over 0 and a finite `b`".to_owned());
        }
        if self.graph.output_column >= self.graph.output_columns {
            problems.push("graph.output_column: is not below output_columns".to_owned());
        }
        for (name, file) in self.files.iter().filter(|(_, file)| !is_sha256(&file.sha256)) {
            problems.push(format!(
                "files.\"{name}\": \"{}\" is not a sha256 of 64 lower-case hexadecimal digits",
                file.sha256
            ));
        }
        problems.extend(self.uplift.iter().flat_map(Uplift::problems));
        self.check_waivers(&mut problems);
        match Schema::new(&self.features) {
            Ok(schema) if schema.columns() != self.graph.columns => {
                problems.push(format!(
                    "graph.columns: {} is not the width of the dictionary, {}",
                    self.graph.columns,
                    schema.columns()
                ));
                Err(problems)
            }
            Ok(schema) if problems.is_empty() => Ok(schema),
            Ok(_) => Err(problems),
            Err(broken) => {
                problems.extend(broken);
                Err(problems)
            }
        }
    }

    fn check_lineage(&self, problems: &mut Vec<String>) {
        if self.lineage.is_empty() {
            problems.push("lineage: is empty; name every data set that the model saw".to_owned());
        }
        for (position, source) in self.lineage.iter().enumerate() {
            if source.uri.trim().is_empty() || source.rows == 0 || !is_sha256(&source.sha256) {
                problems.push(format!(
                    "lineage[{position}]: expected a uri, rows over 0 and a sha256 of 64 lower-case hexadecimal digits"
                ));
            }
        }
    }

    fn check_metrics(&self, problems: &mut Vec<String>) {
        let (cv, holdout) = (&self.metrics.cross_validation, &self.metrics.holdout);
        let estimates = [
            ("cross_validation.auc", cv.auc),
            ("cross_validation.precision_at_20", cv.precision_at_20),
            ("cross_validation.brier", cv.brier),
            ("cross_validation.ece", cv.ece),
            ("holdout.auc", holdout.auc),
            ("holdout.precision_at_20", holdout.precision_at_20),
            ("holdout.brier", holdout.brier),
            ("holdout.ece", holdout.ece),
        ];
        for (place, Estimate { value, low, high }) in estimates {
            // Written so that a NaN fails too.
            if !(low <= value && value <= high) {
                problems.push(format!("metrics.{place}: expected low <= value <= high"));
            }
        }
        for gate in self.metrics.gates.iter().filter(|gate| !gate.passed) {
            problems.push(format!("metrics.gates: {} {} was not met: {}", gate.metric, gate.rule, gate.value));
        }
    }

    fn check_waivers(&self, problems: &mut Vec<String>) {
        for waiver in &self.waivers {
            if !self.features.iter().any(|feature| feature.name == waiver.feature) {
                let meant = nearest(&waiver.feature, self.features.iter().map(|feature| feature.name.as_str()));
                let meant = meant.map_or(String::new(), |nearest| format!("; did you mean \"{nearest}\"?"));
                problems.push(format!("waivers: \"{}\" is not a feature{meant}", waiver.feature));
            }
            if waiver.reason.trim().is_empty() || waiver.granted_by.trim().is_empty() {
                problems.push(format!("waivers: \"{}\" needs a reason and who granted it", waiver.feature));
            }
        }
        for feature in &self.features {
            let waived = self.waivers.iter().any(|waiver| waiver.feature == feature.name);
            if let Some(why) = why_protected(&feature.name).filter(|_| !waived) {
                problems.push(format!(
                    "feature \"{}\": is {why}; leave it out, or state a waiver and who granted it",
                    feature.name
                ));
            }
        }
    }
}

/// Whether `text` can be a model's name or version; it is then also safe as a directory name and as a metric label.
pub fn is_identifier(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(legal) && text.as_bytes()[0].is_ascii_alphanumeric()
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
