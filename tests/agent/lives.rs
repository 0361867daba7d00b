//! The agent dies and comes back at random moments, in the middle of whatever it does, while VMs are told all kinds of things.
//!
//! A seed says everything: it is printed, and shown when a run fails.

use super::bed::{Bed, pass, spec};
use super::world::Fault;
use blixard::engine::hypervisor::Exit;
use blixard::engine::log::AppendError;
use blixard::engine::log::memory::Fault as LogFault;
use blixard::engine::state::{Actual, Desired, Restart, Vm, VmId, VmSpec, VmVerb};
use blixard::text::Code;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SEEDS: u64 = 60;
const ACTS: usize = 120;
const VMS: u64 = 5;

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.below(most + 1))
    }
}

/// Calls take their time, before and after they have an effect, some processes are not written down, and, if `fails`, some
/// calls fail.
fn slow_world(seed: u64, fails: bool) -> impl FnMut(usize, &str) -> Option<Fault> + Send {
    let mut random = Random(seed ^ 0x5eed);
    move |_, name| match random.below(if fails { 24 } else { 20 }) {
        20 | 21 if name != "exited" => Some(Fault::Before),
        22 if name != "exited" => Some(Fault::After),
        23 if name != "exited" => Some(Fault::Hang),
        0..=4 => Some(Fault::Slow(random.millis(3_000))),
        5..=9 => Some(Fault::SlowAnswer(random.millis(3_000))),
        10 | 11 if name == "record the process" => Some(Fault::Lie),
        _ => None,
    }
}

struct Play {
    bed: Bed,
    random: Random,
    /// Do guests crash, and calls fail?
    crashes: bool,
    /// Does the log?
    log_fails: bool,
    /// How often each VM has had a reason to be launched.
    reasons: BTreeMap<VmId, usize>,
    lives: usize,
}

impl Play {
    fn some_vm(&mut self) -> Option<VmId> {
        let vms: Vec<VmId> = self.bed.engine.state().vms().map(|vm| vm.id).collect();
        let at = usize::try_from(self.random.below(vms.len().max(1) as u64)).unwrap();
        vms.get(at).copied()
    }

    async fn act(&mut self) {
        match self.random.below(16) {
            0..=8 => self.verb().await,
            9 => self.crash_guest(),
            10 | 11 => {
                self.bed.crash_agent().await;
                self.next_life().await;
            }
            12 => {
                self.bed.stop_agent().await;
                self.next_life().await;
            }
            13 if self.log_fails => {
                let times = self.random.below(4);
                let faults = (0..times).map(|_| match self.random.below(3) {
                    0 => LogFault::Refuse(AppendError::NotDone("there is no leader".to_owned())),
                    1 => LogFault::LoseAnswer,
                    _ => LogFault::LoseRequest,
                });
                self.bed.log.inject(faults.collect::<Vec<_>>());
            }
            _ => pass(self.random.millis(4_000)).await,
        }
    }

    async fn next_life(&mut self) {
        pass(self.random.millis(2_000)).await;
        self.lives += 1;
        while let Err(error) = self.bed.try_start_agent().await {
            assert!(self.log_fails, "{error}");
        }
    }

    async fn verb(&mut self) {
        if self.bed.engine.state().vms().count() < usize::try_from(VMS).unwrap() {
            let restart = if self.random.below(2) == 0 { Restart::Never } else { Restart::Always };
            let made = self.bed.try_new_vm(VmSpec { restart, grace_ms: self.random.below(4) * 1_000, ..spec() }).await;
            assert!(made.is_ok() || self.log_fails, "{made:?}");
        }
        let Some(vm) = self.some_vm() else { return };
        let verb = match self.random.below(14) {
            0..=4 => VmVerb::Start,
            5 | 6 => VmVerb::Stop { grace_ms: None },
            7 => VmVerb::Kill,
            8 | 9 => VmVerb::Restart,
            10 => VmVerb::Pause,
            11 => VmVerb::Resume,
            _ => VmVerb::Delete,
        };
        let begins = matches!(verb, VmVerb::Start | VmVerb::Restart);
        // A refusal is an answer as well: the state machine's own tests are about those.
        let told = self.bed.tell(vm, verb).await.map_err(|refusal| refusal.code);
        if matches!(told, Ok(()) | Err(Code::TimedOut)) && begins {
            *self.reasons.entry(vm).or_default() += 1;
        }
    }

    fn crash_guest(&mut self) {
        let machines = self.bed.world.simulated.machines();
        let at = usize::try_from(self.random.below(machines.len().max(1) as u64)).unwrap();
        let (Some(run_dir), true) = (machines.get(at), self.crashes) else { return };
        let vm = run_dir.parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
        self.bed.world.simulated.end(run_dir, Exit::Crashed("it crashed; start it".to_owned()));
        *self.reasons.entry(VmId(vm)).or_default() += 1;
    }

    /// What is desired is so, and nothing else is.
    async fn check(&self, of: &str) {
        let bed = &self.bed;
        // What has just happened is seen by now, however slow everything is.
        pass(Duration::from_secs(60)).await;
        if self.crashes {
            // And what was left over is given back.
            bed.world.heal();
            pass(Duration::from_secs(600)).await;
        }
        let vms: Vec<Arc<Vm>> = bed.engine.state().vms().cloned().collect();
        for vm in vms {
            if vm.desired == Desired::Deleted {
                bed.is_gone(vm.id).await;
                assert_eq!((bed.world.held(vm.id.0).len(), bed.world.disks(vm.id.0)), (0, 0), "{of}");
                continue;
            }
            let vm = bed.becomes(vm.id, "settled", |vm| vm.settled()).await;
            let runs = matches!(vm.actual, Actual::Running | Actual::Paused);
            let dirs: Vec<String> = bed
                .world
                .machines(vm.id.0)
                .iter()
                .map(|dir| dir.file_name().unwrap().to_str().unwrap().to_owned())
                .collect();
            let expected: Vec<String> = runs.then(|| vm.generation.to_string()).into_iter().collect();
            assert_eq!(dirs, expected, "{of}: {vm:?}");
            assert_eq!(bed.world.held(vm.id.0).len(), if runs { 3 } else { 0 }, "{of}: {vm:?}");
            let reasons = self.reasons.get(&vm.id).copied().unwrap_or_default();
            assert!(self.crashes || bed.world.launches(vm.id.0) <= reasons, "{of}: launched without a reason: {vm:?}");
            assert!(self.crashes || (vm.failures == 0 && vm.error.is_none()), "{of}: nothing had failed: {vm:?}");
        }
        // A guest that crashes while nobody is there to see that it was started is started again as it was to be.
        let wrong = bed.world.wrong().into_iter().filter(|why| !self.crashes || !why.contains("launched twice"));
        assert_eq!(wrong.collect::<Vec<_>>(), Vec::<String>::new(), "{of}");
        assert!(bed.leftovers().is_empty(), "{of}: {:?}", bed.leftovers());
        let there = bed.engine.state().vms().filter(|vm| matches!(vm.actual, Actual::Running | Actual::Paused)).count();
        assert_eq!(bed.world.simulated.machines().len(), there, "{of}");
    }
}

#[tokio::test(start_paused = true)]
async fn whenever_the_agent_dies_its_next_life_goes_on_where_it_was() {
    let (mut lives, mut launches) = (0, 0);
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let of = format!("seed {seed}");
        let (crashes, log_fails) = (seed % 2 == 0, seed % 3 == 0);
        let (bed, random, reasons) = (Bed::new().await, Random(seed), BTreeMap::new());
        let mut play = Play { bed, random, crashes, log_fails, reasons, lives: 0 };
        play.bed.world.rule(slow_world(seed, crashes));
        for _ in 0..ACTS {
            play.act().await;
        }
        play.check(&of).await;
        lives += play.lives;
        launches += play.bed.world.simulated.launches();
        play.bed.stop_agent().await;
        play.bed.engine.close().await;
    }
    println!("{SEEDS} seeds, {lives} lives, {launches} launches");
    assert!(lives > 500 && launches > 500, "{lives} lives, {launches} launches");
}
