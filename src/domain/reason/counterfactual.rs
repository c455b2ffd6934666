//! Counterfactuals: the fewest and smallest changes of what can be changed about a customer that would lower the tier. Which features can
//! be changed the dictionary says, and how far the baseline. Changes are proposed here; scores and tiers come from above.

use std::cmp::Ordering;

use crate::domain::bundle::baseline::{Baseline, Histogram, Numbers};
use crate::domain::bundle::feature::{Actionable, Feature, Kind, Scalar};
use crate::domain::record::{Entries, Value};
use crate::domain::score::Score;

/// The most counterfactuals of one decision.
pub const COUNTERFACTUALS_MAX: usize = 10;
/// The most features that are changed at once.
pub const FEATURES_MAX: usize = 3;
/// The most changes that are tried alone: the nearest.
const ALONE_MAX: usize = 256;
/// The most changes that are tried together: those that lower the score most by themselves.
const TOGETHER_MAX: usize = 24;
/// The most proposals for one customer: alone, and any two and any three of those that are tried together.
pub const PROPOSALS_MAX: usize =
    ALONE_MAX + TOGETHER_MAX * (TOGETHER_MAX - 1) / 2 + TOGETHER_MAX * (TOGETHER_MAX - 1) * (TOGETHER_MAX - 2) / 6;

/// What can be changed about the customers of one model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Levers(Vec<Lever>);

/// A feature that can be changed.
#[derive(Debug, Clone, PartialEq)]
struct Lever {
    feature: String,
    /// Its description and unit, for the sentence.
    about: String,
    unit: String,
    ends: Ends,
}

/// What a feature can be changed to.
#[derive(Debug, Clone, PartialEq)]
enum Ends {
    /// Any of these from any other of these, each with its share of the training data.
    Categories(Vec<(String, f64)>),
    /// The same in an order, each with the share of the training data that is below the middle of it.
    Steps(Vec<(String, f64)>),
    /// The edges of the baseline, on the sides that are allowed.
    Numbers { sides: &'static [Ordering], edges: Vec<f64>, quantiles: Quantiles },
}

/// The distribution function of a number in the training data, straight within each bin: its points, rising.
#[derive(Debug, Clone, PartialEq)]
struct Quantiles(Vec<(f64, f64)>);

/// One change of one feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Which of the levers.
    lever: usize,
    /// The place of the feature in the customer's record.
    place: usize,
    from: Scalar,
    to: Scalar,
    distance: f64,
}

/// Changes of different features, at least one.
pub type Proposal = Vec<Change>;

/// What became of a customer with a proposal applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The score.
    pub score: Score,
    /// The place of its tier: by falling risk.
    pub tier: usize,
}

/// Changes that lead to a lower tier.
#[derive(Debug, Clone, PartialEq)]
pub struct Counterfactual {
    /// In the order of the dictionary.
    pub changes: Vec<Told>,
    /// What they lead to.
    pub verdict: Verdict,
}

/// A change, in words.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The feature.
    pub feature: String,
    /// Its value.
    pub from: Scalar,
    /// Its value after the change.
    pub to: Scalar,
    /// A sentence for people.
    pub text: String,
}

impl Levers {
    /// The levers of a `dictionary`, in its order.
    pub fn new(dictionary: &[Feature], baseline: &Baseline) -> Self {
        let lever = |feature: &Feature| {
            let ends = Ends::new(feature, feature.actionable.as_ref()?, baseline.features.get(&feature.name)?)?;
            Some(Lever {
                feature: feature.name.clone(),
                about: feature.description.trim_end_matches('.').to_owned(),
                unit: feature.unit.as_ref().map_or(String::new(), |unit| format!(" {unit}")),
                ends,
            })
        };
        Self(dictionary.iter().filter_map(lever).collect())
    }

    /// Every single change of a customer with these `features`, the nearest first, at most [`ALONE_MAX`]. What is missing stays so.
    fn changes(&self, features: &Entries) -> Vec<Change> {
        let mut changes = Vec::new();
        for (at, lever) in self.0.iter().enumerate() {
            let Some(place) = features.iter().position(|(name, _)| *name == lever.feature) else { continue };
            let mut add = |from: Scalar, to: Scalar, distance| {
                changes.push(Change { lever: at, place, from, to, distance });
            };
            match (&lever.ends, &features[place].1) {
                (Ends::Categories(known), Value::Text(from)) if known.iter().any(|(name, _)| name == from) => {
                    for (to, share) in known.iter().filter(|(to, _)| to != from) {
                        add(Scalar::Text(from.clone().into_owned()), Scalar::Text(to.clone()), 1.0 - share);
                    }
                }
                (Ends::Steps(known), Value::Text(from)) => {
                    let Some((_, rank)) = known.iter().find(|(name, _)| name == from) else { continue };
                    for (to, other) in known.iter().filter(|(to, _)| to != from) {
                        add(Scalar::Text(from.clone().into_owned()), Scalar::Text(to.clone()), (other - rank).abs());
                    }
                }
                (Ends::Numbers { sides, edges, quantiles }, Value::Number(from)) => {
                    for to in edges.iter().filter(|to| sides.contains(&to.total_cmp(from))) {
                        let distance = (quantiles.at(*to) - quantiles.at(*from)).abs();
                        add(Scalar::Number(*from), Scalar::Number(*to), distance);
                    }
                }
                _ => {}
            }
        }
        // Stable: of equal ones the first of the dictionary.
        changes.sort_by(|one, other| one.distance.total_cmp(&other.distance));
        changes.truncate(ALONE_MAX);
        changes
    }

    fn told(&self, change: Change) -> Told {
        let lever = &self.0[change.lever];
        let word = |value: &Scalar| match value {
            Scalar::Number(number) => format!("{number}{}", lever.unit),
            Scalar::Text(text) => text.clone(),
        };
        let text = format!("{}: {} instead of {}.", lever.about, word(&change.to), word(&change.from));
        Told { feature: lever.feature.clone(), from: change.from, to: change.to, text }
    }

    /// At most `count` counterfactuals for a customer with these `features`, who is in `tier`: all with the same number of changes, the
    /// least with which there is any, one for each set of features, the nearest first. The distance of a number is the share of the
    /// training data between the two values, that of a category the share that has another one than it is changed to or, where categories
    /// are steps, the share between the middles of the two; those of
    /// several changes add up. The same customer always has the same answer; there may be none.
    ///
    /// `judge` gives what becomes of the customer with each proposal applied, in their order, or `None` where that cannot be known. It
    /// is asked for [`PROPOSALS_MAX`] proposals at most, and once more for each answer, alone: a run of many rows may differ from that
    /// of one in the last digits, and it is the one that counts.
    ///
    /// Errors: those of `judge`.
    pub fn search<E>(
        &self,
        features: &Entries,
        tier: usize,
        count: usize,
        mut judge: impl FnMut(&[Proposal]) -> Result<Vec<Option<Verdict>>, E>,
    ) -> Result<Vec<Counterfactual>, E> {
        let mut proposals: Vec<Proposal> = self.changes(features).into_iter().map(|change| vec![change]).collect();
        let mut together: Vec<Change> = Vec::new();
        for size in 1..=FEATURES_MAX {
            if size > 1 {
                proposals = combined(&together, size);
            }
            if proposals.is_empty() {
                break;
            }
            let verdicts = judge(&proposals)?;
            if size == 1 {
                together = most_promising(&proposals, &verdicts);
            }
            let mut found: Vec<Counterfactual> = Vec::new();
            let mut seen: Vec<Vec<usize>> = Vec::new();
            for (proposal, verdict) in proposals.iter().zip(verdicts) {
                let levers: Vec<usize> = proposal.iter().map(|change| change.lever).collect();
                let lowers = |verdict: &Option<Verdict>| verdict.is_some_and(|verdict| verdict.tier > tier);
                if found.len() >= count || !lowers(&verdict) || seen.contains(&levers) {
                    continue;
                }
                let alone = judge(std::slice::from_ref(proposal))?.pop().flatten();
                if let Some(verdict) = alone.filter(|_| lowers(&alone)) {
                    let changes = proposal.iter().map(|change| self.told(change.clone())).collect();
                    found.push(Counterfactual { changes, verdict });
                    seen.push(levers);
                }
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }
}

/// The changes that lower the score most by themselves, the nearest first.
fn most_promising(alone: &[Proposal], verdicts: &[Option<Verdict>]) -> Vec<Change> {
    let score = |at: &usize| verdicts.get(*at).copied().flatten().map_or(f64::MAX, |verdict| verdict.score.value());
    let mut order: Vec<usize> = (0..alone.len()).collect();
    order.sort_by(|one, other| score(one).total_cmp(&score(other)));
    order.truncate(TOGETHER_MAX);
    order.sort_unstable();
    order.into_iter().flat_map(|at| alone[at].iter().cloned()).collect()
}

/// Every choice of `size` of `changes` that are of different features, the nearest first.
fn combined(changes: &[Change], size: usize) -> Vec<Proposal> {
    let mut chosen: Vec<(f64, Vec<usize>)> = vec![(0.0, Vec::new())];
    for _ in 0..size {
        let longer = |(distance, places): &(f64, Vec<usize>)| {
            let from = places.last().map_or(0, |last| last + 1);
            let differs = |at: &usize| places.iter().all(|place| changes[*place].lever != changes[*at].lever);
            let (distance, places) = (*distance, places.clone());
            (from..changes.len())
                .filter(differs)
                .map(|at| (distance + changes[at].distance, [&places[..], &[at]].concat()))
                .collect::<Vec<_>>()
        };
        chosen = chosen.iter().flat_map(longer).collect();
    }
    chosen.sort_by(|one, other| one.0.total_cmp(&other.0).then_with(|| one.1.cmp(&other.1)));
    let proposal = |places: Vec<usize>| {
        let mut proposal: Proposal = places.into_iter().map(|at| changes[at].clone()).collect();
        proposal.sort_by_key(|change| change.lever);
        proposal
    };
    chosen.into_iter().map(|(_, places)| proposal(places)).collect()
}

impl Change {
    /// Makes the change in the customer's `features`, and gives the value that was there.
    pub fn make<'a>(&self, features: &mut Entries<'a>) -> (usize, Value<'a>) {
        let to = match &self.to {
            Scalar::Number(number) => Value::Number(*number),
            Scalar::Text(text) => Value::Text(text.clone().into()),
        };
        (self.place, std::mem::replace(&mut features[self.place].1, to))
    }
}

impl Ends {
    fn new(feature: &Feature, actionable: &Actionable, histogram: &Histogram) -> Option<Self> {
        match (feature.kind, histogram) {
            (Kind::Category, Histogram::Category(counted)) => {
                let known = feature.categories.as_ref()?;
                let total = counted.categories.values().sum::<u64>().max(1) as f64;
                let share = |name: &String| counted.categories.get(name).copied().unwrap_or_default() as f64 / total;
                if let Actionable::Steps(names) = actionable {
                    let mut below = 0.0;
                    let rank = |name: &String| {
                        let middle = below + share(name) / 2.0;
                        below += share(name);
                        (name.clone(), middle)
                    };
                    return Some(Ends::Steps(names.iter().map(rank).collect()));
                }
                let allowed = |name: &&String| match actionable {
                    Actionable::Between(names) => names.contains(name),
                    _ => true,
                };
                Some(Ends::Categories(known.keys().filter(allowed).map(|name| (name.clone(), share(name))).collect()))
            }
            (Kind::Number | Kind::Integer, Histogram::Number(numbers)) => {
                let range = feature.range?;
                let sides: &[Ordering] = match actionable {
                    Actionable::Lower => &[Ordering::Less],
                    Actionable::Raise => &[Ordering::Greater],
                    Actionable::Any | Actionable::Between(_) | Actionable::Steps(_) => {
                        &[Ordering::Less, Ordering::Greater]
                    }
                };
                let round = |edge: &f64| if feature.kind == Kind::Integer { edge.round() } else { *edge };
                let mut edges: Vec<f64> =
                    numbers.edges.iter().map(round).filter(|edge| feature.allows_number(*edge)).collect();
                edges.dedup();
                Some(Ends::Numbers { sides, edges, quantiles: Quantiles::new(numbers, range.min, range.max) })
            }
            _ => None,
        }
    }
}

impl Quantiles {
    /// Of a histogram of values from `min` to `max`: those are the ends of its outer bins.
    fn new(numbers: &Numbers, min: f64, max: f64) -> Self {
        let total = numbers.counts.iter().sum::<u64>().max(1) as f64;
        let ends = std::iter::once(min).chain(numbers.edges.iter().copied()).chain([max]);
        let mut below = 0;
        let shares = std::iter::once(0.0).chain(numbers.counts.iter().map(|count| {
            below += count;
            below as f64 / total
        }));
        Self(ends.zip(shares).collect())
    }

    /// The share of the training data below `value`.
    fn at(&self, value: f64) -> f64 {
        let Self(points) = self;
        match points.partition_point(|(end, _)| *end <= value) {
            0 => 0.0,
            after if after == points.len() => 1.0,
            after => {
                let ((from, below), (to, above)) = (points[after - 1], points[after]);
                below + (above - below) * (value - from) / (to - from)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::bundle::baseline::{Bins, Categories};
    use crate::domain::bundle::feature::{Missing, Range, Unknown};
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn feature(name: &str, kind: Kind, actionable: Option<Actionable>) -> Feature {
        let is_category = kind == Kind::Category;
        let names = ["a", "b", "c"].into_iter().enumerate();
        Feature {
            name: name.into(),
            kind,
            source: "s".into(),
            owner: "o".into(),
            description: format!("The {name}."),
            unit: (!is_category).then(|| "USD".into()),
            range: (!is_category).then_some(Range { min: 0.0, max: 100.0 }),
            categories: is_category.then(|| names.map(|(at, name)| (name.to_owned(), vec![at as f32])).collect()),
            unknown: is_category.then_some(Unknown::Refuse),
            missing: Missing::Refuse,
            freshness_hours: 1,
            reason: None,
            actionable,
        }
    }

    /// Numbers with edges at 20, 40, 60 and 80, evenly filled; categories with shares of 50, 30 and 20 %.
    fn levers(dictionary: &[Feature]) -> Levers {
        let numbers =
            || Histogram::Number(Numbers { edges: vec![20.0, 40.0, 60.0, 80.0], counts: vec![2; 5], missing: 0 });
        let counted = || {
            let categories = [("a", 5), ("b", 3), ("c", 2)].map(|(name, count)| (name.to_owned(), count)).into();
            Histogram::Category(Categories { categories, missing: 0 })
        };
        let histogram = |feature: &Feature| if feature.kind == Kind::Category { counted() } else { numbers() };
        let features = dictionary.iter().map(|feature| (feature.name.clone(), histogram(feature))).collect();
        Levers::new(dictionary, &Baseline { rows: 10, features, score: Bins { edges: vec![0.5], counts: vec![5, 5] } })
    }

    /// The sum of weighted values as a score; the tier is 1 below the threshold.
    fn verdict(weights: &[f64], threshold: f64, features: &Entries) -> Verdict {
        let value = |value: &Value| match value {
            Value::Number(number) => number / 100.0,
            Value::Text(text) => f64::from(text.as_bytes()[0] - b'a') / 2.0,
            _ => 0.0,
        };
        let sum: f64 = features.iter().zip(weights).map(|((_, of), weight)| weight * value(of)).sum();
        Verdict { score: Score::new(sum.clamp(0.0, 1.0)).expect("a score"), tier: usize::from(sum < threshold) }
    }

    fn run(levers: &Levers, weights: &[f64], threshold: f64, customer: &Entries, count: usize) -> Vec<Counterfactual> {
        let found = levers.search(customer, 0, count, |proposals| {
            let judged = |proposal: &Proposal| {
                let mut changed = customer.clone();
                proposal.iter().for_each(|change| drop(change.make(&mut changed)));
                Some(verdict(weights, threshold, &changed))
            };
            Ok::<_, Infallible>(proposals.iter().map(judged).collect())
        });
        found.unwrap_or_else(|never| match never {})
    }

    fn told(found: &[Counterfactual]) -> Vec<String> {
        found
            .iter()
            .map(|one| one.changes.iter().map(|change| change.text.as_str()).collect::<Vec<_>>().join(" "))
            .collect()
    }

    fn dictionary() -> Vec<Feature> {
        vec![
            feature("plan", Kind::Category, Some(Actionable::Between(vec!["a".into(), "b".into()]))),
            feature("price", Kind::Number, Some(Actionable::Lower)),
            feature("age", Kind::Number, None),
        ]
    }

    fn customer<'a>(plan: &'a str, price: f64) -> Entries<'a> {
        vec![
            ("plan".into(), Value::Text(plan.into())),
            ("price".into(), Value::Number(price)),
            ("age".into(), Value::Number(70.0)),
        ]
    }

    #[test]
    fn the_fewest_changes_then_the_nearest_and_only_of_what_can_be_changed() {
        let levers = levers(&dictionary());
        let weights = [0.2, 0.5, 0.3];
        // 0.1 + 0.35 + 0.21: the price alone does it, at its nearest edge that does; the plan alone does it too, and is farther off.
        let found = run(&levers, &weights, 0.6, &customer("b", 70.0), 5);
        assert_eq!(told(&found), ["The price: 40 USD instead of 70 USD.", "The plan: a instead of b."]);
        assert_eq!(found[0].changes[0].to, Scalar::Number(40.0));
        let both = ["The plan: a instead of b. The price: 20 USD instead of 70 USD."];
        assert_eq!(told(&run(&levers, &weights, 0.405, &customer("b", 70.0), 5)), both);
        assert_eq!(run(&levers, &weights, 0.2, &customer("b", 70.0), 5), [], "the age would do it");
        // A category that nothing leads away from, and a value that is not there.
        let mut without = customer("c", 70.0);
        without.pop();
        without.remove(1);
        assert_eq!(run(&levers, &weights, 0.1, &without, 5), []);
    }

    #[test]
    fn where_categories_are_steps_the_next_one_is_nearest() {
        let steps = Actionable::Steps(["b", "a", "c"].map(str::to_owned).into());
        let levers = levers(&[feature("plan", Kind::Category, Some(steps))]);
        let changes = |plan: &'static str| {
            let changes = levers.changes(&vec![("plan".into(), Value::Text(plan.into()))]);
            changes.into_iter().map(|change| (change.to, (change.distance * 100.0).round())).collect::<Vec<_>>()
        };
        let to = |name: &str| Scalar::Text(name.to_owned());
        // Shares of 30, 50 and 20 %: the middles are at 15, 55 and 90 %.
        assert_eq!(changes("b"), [(to("a"), 40.0), (to("c"), 75.0)]);
        assert_eq!(changes("c"), [(to("a"), 35.0), (to("b"), 75.0)]);
    }

    #[test]
    fn a_run_of_one_row_is_what_counts() {
        let levers = levers(&dictionary());
        let mut asked = Vec::new();
        let found = levers.search(&customer("b", 70.0), 0, 3, |proposals| {
            asked.push(proposals.len());
            let tier = usize::from(proposals.len() > 1);
            Ok::<_, Infallible>(vec![Some(Verdict { score: Score::new(0.5).expect("a score"), tier }); proposals.len()])
        });
        assert_eq!(found, Ok(Vec::new()));
        assert_eq!(asked, [4, 1, 1, 1, 1, 3, 1, 1, 1], "alone, each by itself; two at once, each by itself");
    }

    #[test]
    fn however_large_a_dictionary_is_the_proposals_are_bounded() {
        let dictionary: Vec<Feature> =
            (0..500).map(|at| feature(&format!("f{at}"), Kind::Number, Some(Actionable::Any))).collect();
        let customer: Entries = dictionary.iter().map(|one| (one.name.clone().into(), Value::Number(50.0))).collect();
        let mut asked = 0;
        let found = levers(&dictionary).search(&customer, 0, 3, |proposals| {
            asked += proposals.len();
            Ok::<_, Infallible>(vec![
                Some(Verdict { score: Score::new(0.5).expect("a score"), tier: 0 });
                proposals.len()
            ])
        });
        assert_eq!(found, Ok(Vec::new()));
        assert!((ALONE_MAX..=PROPOSALS_MAX).contains(&asked), "{asked}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        /// Against every way there is to change up to three features.
        #[test]
        fn no_smaller_change_would_do(
            weights in prop::collection::vec(0.0..0.4_f64, 4), values in prop::collection::vec(0..3_usize, 4), threshold in 0.0..1.0_f64,
        ) {
            let kinds = [(Kind::Category, Actionable::Any), (Kind::Number, Actionable::Any), (Kind::Category, Actionable::Any), (Kind::Number, Actionable::Raise)];
            let dictionary: Vec<Feature> =
                kinds.into_iter().enumerate().map(|(at, (kind, way))| feature(&format!("f{at}"), kind, Some(way))).collect();
            let own = |at: usize| match dictionary[at].kind {
                Kind::Category => Value::Text(["a", "b", "c"][values[at]].into()),
                _ => Value::Number([10.0, 50.0, 80.0][values[at]]),
            };
            let customer: Entries = (0..4).map(|at| (dictionary[at].name.clone().into(), own(at))).collect();
            prop_assume!(verdict(&weights, threshold, &customer).tier == 0);
            let levers = levers(&dictionary);
            let found = run(&levers, &weights, threshold, &customer, 10);
            prop_assert_eq!(&run(&levers, &weights, threshold, &customer, 10), &found);

            // The least number of changes, and the least distance with it, over all values of all features.
            let singles = levers.changes(&customer);
            let mut least = (usize::MAX, f64::MAX);
            let mut stack: Vec<(usize, Vec<&Change>)> = vec![(0, Vec::new())];
            while let Some((feature, made)) = stack.pop() {
                if feature == 4 {
                    let mut changed = customer.clone();
                    made.iter().for_each(|change| drop(change.make(&mut changed)));
                    let distance = made.iter().map(|change| change.distance).sum();
                    if made.len() <= FEATURES_MAX && verdict(&weights, threshold, &changed).tier == 1 && (made.len(), distance) < least {
                        least = (made.len(), distance);
                    }
                    continue;
                }
                stack.push((feature + 1, made.clone()));
                for change in singles.iter().filter(|change| change.lever == feature) {
                    stack.push((feature + 1, [&made[..], &[change]].concat()));
                }
            }
            match found.first() {
                None => prop_assert_eq!(least.0, usize::MAX),
                Some(first) => {
                    prop_assert!(found.iter().all(|one| one.changes.len() == least.0 && one.verdict.tier == 1));
                    let distance: f64 = first.changes.iter().map(|told| {
                        singles.iter().find(|change| dictionary[change.lever].name == told.feature && change.to == told.to).expect("a change").distance
                    }).sum();
                    prop_assert!((distance - least.1).abs() < 1e-12, "{distance} is not {}", least.1);
                    let sets: Vec<Vec<&str>> = found.iter().map(|one| one.changes.iter().map(|told| told.feature.as_str()).collect()).collect();
                    prop_assert!(sets.iter().enumerate().all(|(at, set)| !sets[..at].contains(set)));
                }
            }
        }
    }
}
