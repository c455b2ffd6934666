//! An experiment, as it stands in the journal, and what it does with customers.

use mainstay::domain::policy::experiment::{Experiment, Group};

pub(super) fn run(input: &[u8]) {
    let Ok(experiment) = serde_json::from_slice::<Experiment>(input) else { return };
    let problems = experiment.problems();
    assert!(problems.iter().all(|(pointer, text)| pointer.starts_with('/') && !text.is_empty()), "{problems:?}");
    let written = serde_json::to_string(&experiment).expect("it can be written");
    let again: Experiment = serde_json::from_str(&written).expect("what was written can be read");
    assert_eq!(again.problems().len(), problems.len(), "written anew it is judged otherwise");
    if !problems.is_empty() {
        return;
    }
    assert_eq!(experiment.moves_customers(&experiment), [], "the same experiment moves nobody");
    let groups = experiment.arms.len();
    let whole =
        (0..groups).map(Group::Arm).chain([Group::Holdout, Group::Outside]).map(|group| experiment.share(group));
    assert!((whole.sum::<f64>() - 1.0).abs() < 1e-6, "the groups are all customers");
    for customer in 0..16 {
        let id = format!("c-{customer}");
        let assigned = experiment.assign(&id);
        assert_eq!(assigned, experiment.assign(&id), "a customer stays");
        assert!(assigned.propensity > 0.0 && assigned.propensity <= 1.0, "{assigned:?}");
        assert_eq!(assigned.propensity, experiment.share(assigned.group));
        if let Group::Arm(arm) = assigned.group {
            assert!(arm < groups);
        }
    }
}
