//! Random traces of batches under a clock that the test moves: memory and `gate.lua` decide like the plain
//! model, and tell the very millisecond at which a refused request fits.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::super::algorithm::Rule;
use super::super::batch::{Batch, BatchReply, Counter, Item, ItemReply, Refund};
use super::super::local::Settings;
use super::model::{Asked, Model};
use super::*;

const COOL: Algorithm = Algorithm::CoolDown(CoolDown { interval_ms: 25, quiet_ms: 70 });
const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::FixedWindow, Algorithm::SlidingWindow, Algorithm::TokenBucket, Algorithm::SlidingLog, COOL];

/// Stands before a script and gives it a clock and expiry that only the test moves: `clock` holds microseconds,
/// `ends` the milliseconds through which keys live.
const MANUAL_TIME: &str = r"
local redis = (function(real)
  local micros = tonumber(real.call('GET', 'clock'))
  local now = math.floor(micros / 1000)
  local function live(key, ends)
    if ends <= now then real.call('DEL', key) else real.call('HSET', 'ends', key, string.format('%.0f', ends)) end
  end
  for _, key in ipairs(KEYS) do
    local ends = tonumber(real.call('HGET', 'ends', key))
    if ends and now > ends then
      real.call('DEL', key)
      real.call('HDEL', 'ends', key)
    end
  end
  local function run(how, name, key, ...)
    local words = {...}
    if name == 'TIME' then
      return {string.format('%.0f', math.floor(micros / 1000000)), string.format('%.0f', micros % 1000000)}
    elseif name == 'SET' then
      real.call('SET', key, words[1])
      if words[2] == 'PX' then live(key, now + words[3])
      elseif words[2] == 'PXAT' then live(key, tonumber(words[3]))
      elseif words[2] ~= 'KEEPTTL' then real.call('HDEL', 'ends', key) end
      return {ok = 'OK'}
    elseif name == 'PEXPIREAT' then
      live(key, tonumber(words[1]))
      return 1
    elseif name == 'PEXPIRETIME' or name == 'PTTL' then
      if real.call('EXISTS', key) == 0 then return -2 end
      local ends = tonumber(real.call('HGET', 'ends', key))
      return ends and ends - (name == 'PTTL' and now or 0) or -1
    end
    local result = how(name, key, ...)
    if real.call('EXISTS', key) == 0 then real.call('HDEL', 'ends', key) end
    return result
  end
  return {
    call = function(...) return run(real.call, ...) end,
    pcall = function(...) return run(real.pcall, ...) end,
  }
end)(redis)
";

/// A Redis whose scripts live in the test's time.
struct Manual {
    _server: Server,
    connection: redis::Connection,
    gate: String,
    refund: String,
}

impl Manual {
    fn start() -> Self {
        let server = Server::start(&[]);
        let mut connection = server.client();
        let mut load = |text: &str| {
            let text = format!("{MANUAL_TIME}{text}");
            redis::cmd("SCRIPT").arg("LOAD").arg(text).query::<String>(&mut connection).unwrap()
        };
        let (gate, refund) = (load(gate::GATE), load(gate::REFUND));
        Self { _server: server, connection, gate, refund }
    }

    fn begin(&mut self) {
        redis::cmd("FLUSHALL").exec(&mut self.connection).unwrap();
    }

    fn set_clock(&mut self, now: u64) {
        redis::cmd("SET").arg("clock").arg(now * 1_000).exec(&mut self.connection).unwrap();
    }

    fn ask(&mut self, batch: &Batch<'_>) -> BatchReply {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.gate);
        gate::encode(batch, &mut command);
        let value: redis::Value = command.query(&mut self.connection).unwrap();
        gate::decode(value, batch).unwrap()
    }

    fn refund(&mut self, refunds: &[Refund<'_>]) {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.refund);
        gate::encode_refunds(refunds, &mut command);
        command.exec(&mut self.connection).unwrap();
    }

    /// The counters that would live for ever.
    fn immortal(&mut self) -> Vec<String> {
        let keys: Vec<String> = redis::cmd("KEYS").arg("k*").query(&mut self.connection).unwrap();
        let mut mortal = |key: &String| -> bool {
            redis::cmd("HEXISTS").arg("ends").arg(key).query(&mut self.connection).unwrap()
        };
        keys.into_iter().filter(|key| !mortal(key)).collect()
    }
}

/// A counter of a trace: rule, penalise, shadow.
type Shape = (Rule, bool, bool);
/// Milliseconds since the step before, items (which counters, how many requests), how many are taken back.
type Step = (u64, Vec<(u8, u32)>, u32);

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let shape = (0_usize..5, 1_u64..9, 2_u64..60, 1_u64..4, 0_u8..5, 0_u8..5);
    let shape = shape.prop_map(|(pick, limit, period_ms, cost, penalise, shadow)| {
        (Rule { algorithm: ALGORITHMS[pick], limit, period_ms, cost }, penalise == 0, shadow == 0)
    });
    prop::collection::vec(shape, 1..5)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let items = prop::collection::vec((1_u8..16, 0_u32..5), 1..4);
    prop::collection::vec((0_u64..45, items, 0_u32..3), 1..40)
}

#[test]
fn the_script_decides_like_the_plain_model_on_random_traces() {
    let manual = RefCell::new(Manual::start());
    proptest!(Config::with_cases(96), |(shapes in shapes(), steps in steps())| {
        follow(&mut manual.borrow_mut(), &shapes, &steps)?;
    });
}

fn follow(manual: &mut Manual, shapes: &[Shape], steps: &[Step]) -> Result<(), TestCaseError> {
    manual.begin();
    let keys: Vec<_> = (0..shapes.len()).map(|index| format!("k{index}").into_bytes()).collect();
    let (mut model, mut ends, mut now) = (Model::default(), vec![0; shapes.len()], 1_000_000);
    for (step, items, back) in steps {
        now += step;
        manual.set_clock(now);
        let counter = |index: usize| {
            let (rule, penalise, shadow) = shapes[index];
            let known_end = if ends[index] > now { ends[index] } else { 0 };
            Counter { key: keys[index].as_slice(), rule, penalise, shadow, known_end }
        };
        let chosen =
            |mask: u8| (0..shapes.len()).filter(move |index| mask >> index & 1 == 1).collect::<Vec<_>>();
        let item = |&(mask, count): &(u8, u32)| Item {
            counters: chosen(mask).into_iter().map(counter).collect(),
            count,
            ..Item::default()
        };
        let batch = Batch { tags: Vec::new(), items: items.iter().map(item).collect() };
        let reply = manual.ask(&batch);
        let last = batch.items.len() - 1;
        let mut learned = Vec::new();
        for (position, (item, answer)) in batch.items.iter().zip(&reply.items).enumerate() {
            let ItemReply::Judged { granted, counters } = answer else { panic!("barred") };
            let asked = |counter: &Counter<'_>| Asked {
                key: keys.iter().find(|key| *key == counter.key).unwrap(),
                rule: counter.rule,
                penalise: counter.penalise,
                shadow: counter.shadow,
            };
            let asked: Vec<_> = item.counters.iter().map(asked).collect();
            let (expected, alone) = model.judge(&asked, item.count, now);
            let fits: Vec<_> = counters.iter().map(|counted| counted.fits).collect();
            prop_assert_eq!((*granted, fits), (expected, alone), "{:?} at {}", item, now);
            for (counter, counted) in item.counters.iter().zip(counters) {
                let (rule, at) = (counter.rule, UnixMillis(now));
                if rule.algorithm == Algorithm::FixedWindow && counted.state.used > 0 {
                    learned.push((counter.key, counted.state.anchor));
                }
                if rule.cost <= rule.limit {
                    let retry_at = rule.retry_at(rule.roll(counted.state, at), at).0;
                    let fits_at = model.fits_at(counter.key, &rule, now);
                    prop_assert_eq!(retry_at, fits_at, "{:?} {:?} at {}", counter, counted, now);
                }
            }
            // Taking back at once leaves what would have been without them.
            let taken = (*back).min(*granted);
            if last == 0 && position == last && taken > 0 {
                let mut refunds = Vec::new();
                for (counter, counted) in item.counters.iter().zip(counters) {
                    let whole = counted.fits >= *granted && !counter.penalise;
                    let tripped =
                        matches!(counter.rule.algorithm, Algorithm::CoolDown(_)) && counted.state.before == 1;
                    if whole && !tripped {
                        refunds.push(Refund {
                            key: counter.key,
                            rule: counter.rule,
                            state: counted.state,
                            count: taken,
                        });
                        model.take_back(counter.key, taken);
                    }
                }
                manual.refund(&refunds);
            }
        }
        for (key, end) in learned {
            let index = keys.iter().position(|other| other == key).unwrap();
            ends[index] = end;
        }
        prop_assert_eq!(manual.immortal(), Vec::<String>::new());
    }
    Ok(())
}

proptest! {
    #[test]
    fn memory_decides_like_the_plain_model_on_random_traces(
        shape in prop::collection::vec((0_usize..5, 1_u64..8, 1_u64..400, 1_u32..3), 1..4),
        steps in prop::collection::vec((0_u64..150, 0_usize..3), 1..120),
    ) {
        let policies: Vec<_> = shape.into_iter().enumerate().map(|(index, (pick, limit, period, cost))| {
            let windows = vec![window(limit, Duration::from_millis(period))];
            let key = if index % 2 == 0 { KeyPart::User } else { KeyPart::Ip };
            let policy = Policy::new(&format!("p{index}"), &[key], ALGORITHMS[pick], LimitSource::Windows(windows));
            policy.unwrap().with_cost(cost).unwrap()
        }).collect();
        let policies: Vec<_> = policies.iter().collect();
        let (space, local, mut model) = (KeySpace::default(), Local::new(Settings::default()), Model::default());
        let mut now = 1_000_000;
        for (step, user) in steps {
            now += step;
            let mut checks = checks_in(&space, &policies, &user.to_string(), UnixMillis(now));
            let own = checks.clone();
            let asked: Vec<_> = own.iter().map(|check| {
                Asked { key: own.key(check), rule: check.rule, penalise: false, shadow: false }
            }).collect();
            let misfits: Vec<_> = asked.iter().enumerate()
                .filter(|(_, one)| !model.fits(one.key, &one.rule, now)).map(|(index, _)| index).collect();
            let violated = match local.decide(&mut checks, UnixMillis(now)) {
                Decision::Admitted { .. } => Vec::new(),
                Decision::Refused(refused) => refused.violated.iter().collect(),
            };
            prop_assert_eq!(&violated, &misfits);
            model.judge(&asked, 1, now);
        }
    }
}
