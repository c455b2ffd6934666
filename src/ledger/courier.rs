//! The courier: brings what became of records to the tasks that wait for them on one thread. Waking a task from another thread costs
//! a system call; a group has dozens of them, and this makes it one for each thread.

use std::cell::RefCell;

use tokio::sync::{mpsc, oneshot};

/// What became of a record: there as promised, or why not.
pub(super) type Outcome = Result<(), String>;

thread_local! {
    static COURIER: RefCell<Option<mpsc::UnboundedSender<Vec<Delivery>>>> = const { RefCell::new(None) };
}

struct Delivery {
    to: oneshot::Sender<Outcome>,
    outcome: Outcome,
}

/// Where somebody waits for a record.
pub(super) struct Reply {
    to: oneshot::Sender<Outcome>,
    /// Of the thread that waits, if it has one.
    courier: Option<mpsc::UnboundedSender<Vec<Delivery>>>,
}

impl Reply {
    /// A place to wait at, and the way to it from here.
    pub(super) fn new() -> (Self, oneshot::Receiver<Outcome>) {
        let (to, waiting) = oneshot::channel();
        (Self { to, courier: COURIER.with_borrow(Clone::clone) }, waiting)
    }
}

/// Tells everybody in `replies` the `outcome` of their group. Who waited may have given up meanwhile.
pub(super) fn deliver(replies: impl Iterator<Item = Reply>, outcome: &Outcome) {
    let mut bags: Vec<(mpsc::UnboundedSender<Vec<Delivery>>, Vec<Delivery>)> = Vec::new();
    for Reply { to, courier } in replies {
        let Some(courier) = courier else {
            let _ = to.send(outcome.clone());
            continue;
        };
        let delivery = Delivery { to, outcome: outcome.clone() };
        match bags.iter_mut().find(|(known, _)| known.same_channel(&courier)) {
            Some((_, bag)) => bag.push(delivery),
            None => bags.push((courier, vec![delivery])),
        }
    }
    for (courier, bag) in bags {
        let _ = courier.send(bag);
    }
}

/// Delivers to the tasks of this thread, for as long as its runtime runs: to be spawned on every thread that awaits receipts.
/// What waits in it is bounded by the ledger's queue. Without it receipts come too, each at the price of a wake-up.
pub async fn courier() {
    let (sender, mut bags) = mpsc::unbounded_channel::<Vec<Delivery>>();
    COURIER.with_borrow_mut(|courier| *courier = Some(sender));
    while let Some(bag) = bags.recv().await {
        for Delivery { to, outcome } in bag {
            let _ = to.send(outcome);
        }
    }
}
