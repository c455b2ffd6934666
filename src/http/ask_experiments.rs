//! Experiments as they are asked for: read with every violation of their shape at once, by JSON pointer. What they say is judged by
//! the laws of `domain::policy`.

use serde::Deserialize;
use utoipa::ToSchema;

use super::access::Who;
use super::problem::Problem;
use super::slots::Said;
use crate::domain::nearest::nearest;
use crate::domain::policy::experiment::{self, ARMS_MAX, Treatment};
use crate::domain::policy::registry::Begin;
use crate::domain::record::Value;
use crate::domain::violation::{Code, LISTED_MAX, Violation, pointer};
use crate::engine::Draft;

/// The words of `starts_after`.
const ROLLOUT: &str = "rollout";

/// Create an experiment.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the contract of the request; `Asked` reads it and tells every violation")]
pub(super) struct Creating {
    /// Who asks: it stands on record. Where credentials are asked for it is the holder of those, and nobody else may stand here
    #[schema(required = false, nullable = false, min_length = 1, max_length = 128, example = "ops@example.com")]
    by: Option<String>,
    /// Why, in your words: it stands on record
    #[serde(default)]
    #[schema(max_length = 1000)]
    why: String,
    /// The model whose customers it treats; without it the default one
    #[schema(nullable = false)]
    model: Option<String>,
    /// The experiment
    experiment: ExperimentDraft,
}

/// Change an experiment.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "see Creating")]
pub(super) struct Changing {
    by: Option<String>,
    #[serde(default)]
    why: String,
    /// Apply it even if it moves customers while the experiment runs
    #[serde(default)]
    force: bool,
    /// What takes its place: all of it
    experiment: ExperimentDraft,
}

/// An experiment, as it is asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "see Creating")]
pub(super) struct ExperimentDraft {
    /// Its name, which no other experiment has
    #[schema(pattern = "^[a-z0-9_-]{1,64}$", example = "call-or-mail")]
    name: String,
    /// What is expected to be found
    #[schema(min_length = 1, max_length = 2000)]
    hypothesis: String,
    /// Who answers for it
    #[schema(min_length = 1, max_length = 2000)]
    owner: String,
    /// What is compared; none where it is only a holdout
    #[schema(max_items = 16)]
    #[serde(default)]
    arms: Vec<ArmDraft>,
    /// The share of all customers who are offered nothing
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1)]
    holdout: f64,
    /// When it begins; without it, it waits for somebody who starts it, or for `starts_after`
    #[schema(format = DateTime, nullable = false)]
    from: Option<String>,
    /// When it ends
    #[schema(format = DateTime)]
    to: String,
    /// `rollout`: it begins once a rollout of its model has ended in a promotion, and not before `from`
    #[schema(nullable = false, example = "rollout")]
    starts_after: Option<String>,
    /// What makes its assignment its own, 8 to 128 characters; without it the service makes one
    #[schema(nullable = false)]
    salt: Option<String>,
}

/// An arm, as it is asked for. With neither `intervention` nor `policy` it is the control: the policy in force decides.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "see Creating")]
pub(super) struct ArmDraft {
    /// Its name; `holdout` is taken
    #[schema(pattern = "^[a-z0-9_-]{1,64}$", example = "call")]
    name: String,
    /// The share of all customers that are in it
    #[schema(exclusive_minimum = 0, maximum = 1, example = 0.1)]
    share: f64,
    /// What is done to them, for people
    #[serde(default)]
    #[schema(max_length = 2000)]
    description: String,
    /// This action of the policy in force comes before all others, where a customer may have it and there is money for it
    #[schema(nullable = false, example = "account_manager_call")]
    intervention: Option<String>,
    /// This policy decides: the document itself, TOML, without `[budget]` and `[holdout]`, in the currency in force
    #[schema(nullable = false)]
    policy: Option<String>,
}

/// A request about an experiment.
pub(super) struct Asked {
    pub(super) said: Said,
    pub(super) model: Option<String>,
    pub(super) force: bool,
    pub(super) draft: Draft,
}

impl Asked {
    /// A request with an experiment; of `model` and `force` it may have those that are `known`.
    ///
    /// Errors: every violation of the shape. What the experiment says is judged by the law.
    pub(super) fn read(value: Value<'_>, known: &[&str], who: &Who) -> Result<Self, Problem> {
        let mut reader = Reader::default();
        let [by, why, experiment, model, force] =
            reader.fields(Some(value), "", ["by", "why", "experiment", "model", "force"]);
        for (name, given) in [("model", model.is_some()), ("force", force.is_some())] {
            if given && !known.contains(&name) {
                let () = reader.wrong(&pointer("", name), Code::UnknownName, "by, why or experiment");
            }
        }
        let force = match force {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(_) => reader.wrong("/force", Code::WrongType, "true or false"),
        };
        let asked = Self {
            said: reader.said([by, why], who),
            model: reader.text_if(model, "/model"),
            force,
            draft: reader.draft(experiment),
        };
        reader.end(asked)
    }

    /// A request without one: who asks, and why.
    pub(super) fn plain(value: Value<'_>, who: &Who) -> Result<Said, Problem> {
        let mut reader = Reader::default();
        let [by, why] = reader.fields(Some(value), "", ["by", "why"]);
        let said = reader.said([by, why], who);
        reader.end(said)
    }
}

/// Reads a body and collects what is wrong with its shape.
#[derive(Default)]
struct Reader {
    violations: Vec<Violation>,
}

impl Reader {
    fn end<T>(mut self, read: T) -> Result<T, Problem> {
        self.violations.truncate(LISTED_MAX);
        if self.violations.is_empty() { Ok(read) } else { Err(Problem::invalid(self.violations)) }
    }

    /// Notes what is wrong; the value that stands in for it does not matter.
    fn wrong<T: Default>(&mut self, place: &str, code: Code, expected: &str) -> T {
        self.violations.push(Violation::new(place, code, expected));
        T::default()
    }

    /// The fields of an object, in the order of `known`.
    fn fields<'v, const N: usize>(
        &mut self,
        value: Option<Value<'v>>,
        place: &str,
        known: [&str; N],
    ) -> [Option<Value<'v>>; N] {
        let mut fields = [const { None }; N];
        let entries = match value {
            Some(Value::Map(entries)) => entries,
            None | Some(Value::Null) => {
                let () = self.wrong(place, Code::Missing, "an object");
                return fields;
            }
            Some(_) => {
                let () = self.wrong(place, Code::WrongType, "an object");
                return fields;
            }
        };
        for (key, value) in entries {
            match known.iter().position(|known| *known == key) {
                Some(at) if fields[at].is_none() => fields[at] = Some(value),
                // No more are told of: what is not listed need not be made up.
                _ if self.violations.len() >= LISTED_MAX => {}
                Some(_) => self.wrong(&pointer(place, &key), Code::Duplicate, "one value"),
                None => {
                    let violation = Violation::new(pointer(place, &key), Code::UnknownName, known.join(", "));
                    self.violations.push(violation.or_nearest(nearest(&key, known)));
                }
            }
        }
        fields
    }

    /// What is no object is one violation behind those that were `told` before, not one for each field that it lacks.
    fn only_itself(&mut self, told: usize, is_object: bool) {
        if !is_object {
            self.violations.truncate(told + 1);
        }
    }

    /// Who asks, which has to be said where nobody has credentials, and why.
    fn said(&mut self, [by, why]: [Option<Value>; 2], who: &Who) -> Said {
        let by = if who.actor().is_some() { self.text_if(by, "/by") } else { self.text(by, "/by") };
        (by, self.text_if(why, "/why").unwrap_or_default())
    }

    fn text_if(&mut self, value: Option<Value>, place: &str) -> Option<String> {
        match value {
            None | Some(Value::Null) => None,
            value => self.text(value, place),
        }
    }

    fn text(&mut self, value: Option<Value>, place: &str) -> Option<String> {
        match value {
            Some(Value::Text(text)) => Some(text.into_owned()),
            None | Some(Value::Null) => self.wrong(place, Code::Missing, "a string"),
            Some(_) => self.wrong(place, Code::WrongType, "a string"),
        }
    }

    fn share(&mut self, value: Option<Value>, place: &str) -> f64 {
        match value {
            Some(Value::Number(share)) => share,
            None | Some(Value::Null) => self.wrong(place, Code::Missing, "a share, 0 to 1"),
            Some(_) => self.wrong(place, Code::WrongType, "a share, 0 to 1"),
        }
    }

    /// A time in milliseconds since 1970.
    fn time(&mut self, text: Option<String>, place: &str) -> Option<u64> {
        let text = text?;
        let ms = text.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok());
        ms.filter(|ms| *ms > 0).or_else(|| self.wrong(place, Code::WrongType, "a time after RFC 3339, after 1970"))
    }

    fn draft(&mut self, value: Option<Value>) -> Draft {
        let (told, is_object) = (self.violations.len(), matches!(value, Some(Value::Map(_))));
        const FIELDS: [&str; 9] =
            ["name", "hypothesis", "owner", "arms", "holdout", "from", "to", "starts_after", "salt"];
        let [name, hypothesis, owner, arms, holdout, from, to, starts_after, salt] =
            self.fields(value, "/experiment", FIELDS);
        let arms = match arms {
            None | Some(Value::Null) => Vec::new(),
            // Longer than the law allows anyway: it need not be read to its end.
            Some(Value::List(arms)) => arms.into_iter().take(ARMS_MAX + 1).collect(),
            Some(_) => self.wrong("/experiment/arms", Code::WrongType, "an array of arms"),
        };
        let read = arms.into_iter().enumerate().map(|(at, arm)| self.arm(at, arm));
        let (arms, documents) = read.unzip();
        let from = self.text_if(from, "/experiment/from");
        let has_time = from.is_some();
        let from_ms = self.time(from, "/experiment/from");
        let to = self.text(to, "/experiment/to");
        let begin = match self.text_if(starts_after, "/experiment/starts_after").as_deref() {
            None if has_time => Begin::AtTime,
            None => Begin::ByHand,
            Some(ROLLOUT) => Begin::AfterRollout,
            Some(_) => {
                let () = self.wrong("/experiment/starts_after", Code::UnknownCategory, "\"rollout\"");
                Begin::AfterRollout
            }
        };
        let mut required = |value, field: &str| self.text(value, &pointer("/experiment", field)).unwrap_or_default();
        let (name, hypothesis, owner) =
            (required(name, "name"), required(hypothesis, "hypothesis"), required(owner, "owner"));
        let experiment = experiment::Experiment {
            name,
            hypothesis,
            owner,
            arms,
            holdout: match holdout {
                None | Some(Value::Null) => 0.0,
                holdout => self.share(holdout, "/experiment/holdout"),
            },
            from_ms: from_ms.unwrap_or(0),
            to_ms: self.time(to, "/experiment/to").unwrap_or(u64::MAX),
            salt: self.text_if(salt, "/experiment/salt").unwrap_or_default(),
        };
        self.only_itself(told, is_object);
        Draft { experiment, begin, documents }
    }

    fn arm(&mut self, at: usize, value: Value) -> (experiment::Arm, Option<String>) {
        let place = format!("/experiment/arms/{at}");
        let (told, is_object) = (self.violations.len(), matches!(value, Value::Map(_)));
        let [name, share, description, intervention, policy] =
            self.fields(Some(value), &place, ["name", "share", "description", "intervention", "policy"]);
        let intervention = self.text_if(intervention, &format!("{place}/intervention"));
        let policy = self.text_if(policy, &format!("{place}/policy"));
        if intervention.is_some() && policy.is_some() {
            let () = self.wrong(&place, Code::NotAllowed, "an intervention or a policy, not both");
        }
        let arm = experiment::Arm {
            name: self.text(name, &format!("{place}/name")).unwrap_or_default(),
            share: self.share(share, &format!("{place}/share")),
            description: self.text_if(description, &format!("{place}/description")).unwrap_or_default(),
            treatment: intervention.map_or(Treatment::Control, Treatment::Intervention),
        };
        self.only_itself(told, is_object);
        (arm, policy)
    }
}
