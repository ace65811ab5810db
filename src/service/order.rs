//! Which job is next: fair between clients, small before big, and nobody waits for ever.
//!
//! Time is counted in work: seconds that jobs are estimated to take, shared out among the
//! clients that have some (virtual time, as in weighted fair queueing: Demers, Keshav and
//! Shenker 1989). A client's next job is the one that comes earliest by arrival plus cost,
//! unless an older one has been passed by as much work as it is itself; among clients, the
//! one goes first whose job would end earliest had each its own share of the device.
//!
//! The bound: a job of cost `c` is passed by no more than `c` seconds of its own client's
//! later work, and by no more than `2 · c` of each other client's (its own share, and that
//! of what passed it). What came before it, and what its client has been given already,
//! counts as in any line.
//!
//! A client whose work nobody waits for has a small share of the device beside others, and
//! all of it beside none: its jobs count as if they took [`PATIENT`] times as long.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Who asks: those of one key, or without keys of one address, share what is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    identity: u64,
    is_patient: bool,
}

/// How many times the share of a patient client is that of another.
const PATIENT: f64 = 8.0;

impl Client {
    /// Whoever is not told from others.
    pub const NOBODY: Self = Self { identity: 0, is_patient: false };

    /// The client that `identity` stands for, of which only a hash is kept.
    #[must_use]
    pub fn of(identity: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        identity.hash(&mut hasher);
        Self { identity: hasher.finish(), is_patient: false }
    }

    /// The same, of whom nobody waits for the work.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { is_patient: true, ..self }
    }

    /// By how much its work counts for more than it is.
    fn weight(self) -> f64 {
        if self.is_patient { PATIENT } else { 1.0 }
    }
}

/// What the order knows of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ticket {
    client: Client,
    /// Virtual time at which it came.
    came: f64,
    /// Seconds that it is estimated to take.
    cost_s: f64,
    /// Its place among all that ever came.
    number: u64,
    /// Seconds of its client's later work that went before it.
    passed_s: f64,
}

impl Ticket {
    pub(super) fn client(&self) -> Client {
        self.client
    }
}

/// Virtual time, and what clients have been given.
#[derive(Debug, Default)]
pub(super) struct Order {
    now: f64,
    /// How many have come.
    count: u64,
    /// Until when, in virtual time, a client has been given its share.
    served_until: HashMap<Client, f64>,
}

impl Order {
    /// A job that comes now.
    pub(super) fn ticket(&mut self, client: Client, cost_s: f64) -> Ticket {
        self.count += 1;
        Ticket { client, came: self.now, cost_s, number: self.count, passed_s: 0.0 }
    }

    /// The index of the job that is next among `waiting`, each with the seconds that it
    /// would take besides its own work, such as to load its model.
    pub(super) fn next<'a>(
        &self,
        waiting: impl Iterator<Item = (usize, &'a Ticket, f64)>,
    ) -> Option<usize> {
        let mut by_client: BTreeMap<Client, Vec<Candidate>> = BTreeMap::new();
        for (index, ticket, extra_s) in waiting {
            let candidate = Candidate { index, ticket, total_s: ticket.cost_s + extra_s };
            by_client.entry(ticket.client).or_default().push(candidate);
        }
        let heads = by_client.into_values().filter_map(|own| head_of(&own));
        let ends = |head: &Candidate| {
            self.start_of(head.ticket) + head.total_s * head.ticket.client.weight()
        };
        let earliest = |left: &Candidate, right: &Candidate| {
            let by_end = ends(left).total_cmp(&ends(right));
            by_end.then(left.ticket.number.cmp(&right.ticket.number))
        };
        heads.min_by(earliest).map(|head| head.index)
    }

    /// Notes that a job begins; `waiting` are those that do not yet, and `busy` the clients
    /// that have work, its own among them.
    pub(super) fn begin<'a>(
        &mut self,
        job: &Ticket,
        waiting: impl Iterator<Item = &'a mut Ticket>,
        busy: &BTreeSet<Client>,
    ) {
        let until = self.start_of(job) + job.cost_s * job.client.weight();
        self.served_until.insert(job.client, until);
        let shares: f64 = busy.iter().map(|client| 1.0 / client.weight()).sum();
        // Without anybody else it has the whole device.
        let shares = if busy.is_empty() { 1.0 / job.client.weight() } else { shares };
        self.now += job.cost_s / shares;
        let is_passed =
            |other: &&mut Ticket| other.client == job.client && other.number < job.number;
        for other in waiting.filter(is_passed) {
            other.passed_s += job.cost_s;
        }
        // Of those who ask for nothing, and whose share is behind them, nothing need be known.
        let now = self.now;
        self.served_until.retain(|client, until| *until > now || busy.contains(client));
    }

    /// Nobody waits and nothing runs: all begin anew.
    pub(super) fn rest(&mut self) {
        self.served_until.clear();
    }

    fn start_of(&self, job: &Ticket) -> f64 {
        job.came.max(self.served_until.get(&job.client).copied().unwrap_or(0.0))
    }
}

/// A job that may be next.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    index: usize,
    ticket: &'a Ticket,
    /// Seconds with those besides its own work.
    total_s: f64,
}

/// Which of one client's jobs is next.
fn head_of<'a>(own: &[Candidate<'a>]) -> Option<Candidate<'a>> {
    let by_end = |left: &&Candidate, right: &&Candidate| {
        let end = |candidate: &Candidate| candidate.ticket.came + candidate.total_s;
        end(left).total_cmp(&end(right)).then(left.ticket.number.cmp(&right.ticket.number))
    };
    let best = own.iter().min_by(by_end)?;
    let has_waited = |other: &&Candidate| {
        other.ticket.number < best.ticket.number
            && other.ticket.passed_s + best.ticket.cost_s > other.total_s
    };
    let oldest = own.iter().filter(has_waited).min_by_key(|other| other.ticket.number);
    Some(*oldest.unwrap_or(best))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jobs that come by and by to one device, which makes one after the other. Time is
    /// that of the work alone: there is no clock.
    #[derive(Default)]
    struct Device {
        order: Order,
        waiting: Vec<(&'static str, Ticket)>,
    }

    impl Device {
        fn come(&mut self, name: &'static str, client: u8, cost_s: f64) {
            self.waiting.push((name, self.order.ticket(Client::of(&client), cost_s)));
        }

        fn serve(&mut self) -> &'static str {
            let waiting = self.waiting.iter().enumerate();
            let next = self.order.next(waiting.map(|(index, (_, job))| (index, job, 0.0)));
            let next = next.unwrap();
            let clients: BTreeSet<_> = self.waiting.iter().map(|(_, job)| job.client).collect();
            let (name, job) = self.waiting.remove(next);
            let waiting = self.waiting.iter_mut().map(|(_, job)| job);
            self.order.begin(&job, waiting, &clients);
            name
        }

        fn serve_all(&mut self) -> Vec<&'static str> {
            (0..self.waiting.len()).map(|_| self.serve()).collect()
        }
    }

    #[test]
    fn small_jobs_go_before_big_ones_of_the_same_and_of_other_clients() {
        for client_of_small in [1, 2] {
            let mut device = Device::default();
            device.come("big", 1, 100.0);
            device.come("small", client_of_small, 1.0);

            assert_eq!(device.serve_all(), ["small", "big"]);
        }
    }

    #[test]
    fn jobs_of_equal_size_keep_their_order() {
        let mut device = Device::default();
        for (name, client) in [("a", 1), ("b", 2), ("c", 3), ("d", 1)] {
            device.come(name, client, 5.0);
        }

        assert_eq!(device.serve_all(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_big_job_is_passed_by_no_more_of_later_work_than_the_bound() {
        for (clients, a_round) in [(1, 1), (1, 20), (2, 1), (2, 20), (3, 1)] {
            let mut device = Device::default();
            device.come("big", 0, 100.0);
            let mut passed_s = 0.0;
            loop {
                // More and more small jobs, of the same client and of others, without an end.
                for client in (0..clients).flat_map(|client| vec![client; a_round]) {
                    device.come("small", client, 1.0);
                }
                if device.serve() == "big" {
                    break;
                }
                passed_s += 1.0;
                let bound_s = 100.0 + 200.0 * f64::from(clients - 1);
                assert!(passed_s <= bound_s + 1.0, "{clients}, {a_round}");
            }
            assert!(passed_s >= 50.0, "{clients} clients: small ones do go first: {passed_s}");
        }
    }

    #[test]
    fn patient_work_goes_after_that_of_others_but_is_never_left_for_ever() {
        let mut device = Device::default();
        for _ in 0..20 {
            let ticket = device.order.ticket(Client::of(&1).patient(), 10.0);
            device.waiting.push(("patient", ticket));
        }
        assert_eq!(device.serve(), "patient", "there is nothing else");
        let mut order = Vec::new();
        for _ in 0..40 {
            // Somebody always waits for something.
            device.come("usual", 2, 10.0);
            order.push(device.serve());
        }

        let patient = order.iter().filter(|name| **name == "patient").count();
        assert!((1..=40 / 6).contains(&patient), "{patient} of {order:?}");
        assert_eq!(order[0], "usual");
    }

    #[test]
    fn who_asks_for_little_does_not_wait_for_all_of_who_asked_for_much() {
        let mut device = Device::default();
        for _ in 0..10 {
            device.come("many", 1, 10.0);
        }
        device.serve();
        device.serve();

        device.come("one", 2, 10.0);

        let rest = device.serve_all();
        let place = rest.iter().position(|name| *name == "one").unwrap();
        assert!(place <= 1, "{rest:?}");
    }

    #[test]
    fn two_who_ask_for_much_take_turns() {
        let mut device = Device::default();
        for name in ["a", "b"] {
            for _ in 0..4 {
                device.come(name, name.as_bytes()[0], 10.0);
            }
        }

        assert_eq!(device.serve_all(), ["a", "b", "a", "b", "a", "b", "a", "b"]);
    }

    #[test]
    fn many_small_jobs_of_one_client_do_not_outdo_a_big_one_of_another() {
        let mut device = Device::default();
        for _ in 0..100 {
            device.come("small", 1, 1.0);
        }
        device.come("big", 2, 10.0);

        let order = device.serve_all();

        let place = order.iter().position(|name| *name == "big").unwrap();
        assert!((5..=20).contains(&place), "{place}");
    }

    #[test]
    fn a_job_that_must_load_its_model_first_lets_others_go_before_it_for_as_long() {
        let mut order = Order::default();
        let [first, second] = [1u8, 2].map(|client| order.ticket(Client::of(&client), 5.0));

        let next = |loading_s| order.next([(0, &first, loading_s), (1, &second, 0.0)].into_iter());

        assert_eq!((next(0.0), next(30.0)), (Some(0), Some(1)));
    }

    #[test]
    fn what_is_known_of_clients_does_not_grow_with_them() {
        let mut order = Order::default();
        for client in 0..10_000u32 {
            let job = order.ticket(Client::of(&client), 1.0);
            order.begin(&job, std::iter::empty(), &BTreeSet::new());
        }

        assert!(order.served_until.len() < 10, "{}", order.served_until.len());
    }
}
