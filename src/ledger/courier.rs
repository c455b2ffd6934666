//! The courier: brings what became of records to the tasks that wait for them on one thread. Waking a task from another thread costs
//! a system call; a group has dozens of them, and this makes it one for each thread. It brings the drafts back too: what a thread
//! allocated is freed there, where it is used again at once, and a request's buffer is its connection's again before the answer.

use std::cell::RefCell;

use tokio::sync::{mpsc, oneshot};

use super::record::Draft;

/// What became of a record: there as promised, or why not.
pub(super) type Outcome = Result<(), String>;

thread_local! {
    static COURIER: RefCell<Option<mpsc::UnboundedSender<Bag>>> = const { RefCell::new(None) };
}

/// Drafts that were sent together, and where somebody waits for their record.
pub(super) type Sent = (Vec<Draft>, Option<Reply>);

/// What became of the part of a group that came from one thread.
struct Bag {
    sent: Vec<(Vec<Draft>, Reply)>,
    outcome: Outcome,
}

/// Where somebody waits for a record.
pub(super) struct Reply {
    to: oneshot::Sender<Outcome>,
    /// Of the thread that waits, if it has one.
    courier: Option<mpsc::UnboundedSender<Bag>>,
}

impl Reply {
    /// A place to wait at, and the way to it from here.
    pub(super) fn new() -> (Self, oneshot::Receiver<Outcome>) {
        let (to, waiting) = oneshot::channel();
        (Self { to, courier: COURIER.with_borrow(Clone::clone) }, waiting)
    }
}

/// Tells everybody in `group` its `outcome`. Who waited may have given up meanwhile.
pub(super) fn deliver(group: Vec<Sent>, outcome: &Outcome) {
    let mut bags: Vec<(mpsc::UnboundedSender<Bag>, Bag)> = Vec::new();
    for (drafts, reply) in group {
        let Some(reply) = reply else { continue };
        let Some(courier) = &reply.courier else {
            drop(drafts);
            let _ = reply.to.send(outcome.clone());
            continue;
        };
        match bags.iter_mut().find(|(known, _)| known.same_channel(courier)) {
            Some((_, bag)) => bag.sent.push((drafts, reply)),
            None => bags.push((courier.clone(), Bag { sent: vec![(drafts, reply)], outcome: outcome.clone() })),
        }
    }
    for (courier, bag) in bags {
        let _ = courier.send(bag);
    }
}

/// Delivers to the tasks of this thread, for as long as its runtime runs: to be spawned on every thread that awaits receipts.
/// What waits in it is bounded by the requests in flight. Without it receipts come too, each at the price of a wake-up.
pub async fn courier() {
    let (sender, mut bags) = mpsc::unbounded_channel::<Bag>();
    COURIER.with_borrow_mut(|courier| *courier = Some(sender));
    while let Some(Bag { sent, outcome }) = bags.recv().await {
        for (drafts, reply) in sent {
            drop(drafts);
            let _ = reply.to.send(outcome.clone());
        }
    }
}
