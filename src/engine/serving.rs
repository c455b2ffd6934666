//! What is in service: an immutable snapshot per model name, all of them behind one pointer, so that nobody ever sees a new
//! model with an old policy.

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::policy::Policy;
use crate::model::Model;
use crate::telemetry::{Counter, Metrics};

/// What serves one model name.
#[derive(Debug)]
pub struct Serving {
    /// The champion.
    pub model: Arc<Model>,
    /// The policy that its scores go through.
    pub policy: Arc<Policy>,
    /// The counter of each tier, by its place in the policy.
    pub(super) decided: Vec<Counter>,
}

impl Serving {
    /// `model` under `policy`, counted in `metrics`.
    pub fn new(model: Arc<Model>, policy: Arc<Policy>, metrics: &Metrics) -> Self {
        let id = model.id();
        let decided = policy.tiers().iter().map(|tier| metrics.decisions(&id.name, &id.version, &tier.name)).collect();
        metrics.model_in_service(&id.name, &id.version, "champion", model.probe().row_p50_us, model.probe().row_p99_us);
        Self { model, policy, decided }
    }
}

/// Everything in service, by model name, in the order of the configuration.
#[derive(Debug)]
pub struct Catalogue {
    servings: Vec<Arc<Serving>>,
    index: HashMap<String, usize>,
}

impl Catalogue {
    /// The catalogue of `servings`, the first of which is the default. `None` when there is none, or two of one name.
    pub fn new(servings: Vec<Serving>) -> Option<Self> {
        let index: HashMap<String, usize> =
            servings.iter().enumerate().map(|(at, serving)| (serving.model.id().name.clone(), at)).collect();
        let legal = !servings.is_empty() && index.len() == servings.len();
        legal.then(|| Self { servings: servings.into_iter().map(Arc::new).collect(), index })
    }

    /// What answers when no model is named.
    pub fn default_serving(&self) -> &Arc<Serving> {
        &self.servings[0]
    }

    /// What serves the model called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Serving>> {
        self.index.get(name).map(|at| &self.servings[*at])
    }

    /// Everything, the default first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Serving>> {
        self.servings.iter()
    }

    /// The names of the models, the default first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.servings.iter().map(|serving| serving.model.id().name.as_str())
    }
}
