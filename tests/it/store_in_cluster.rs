//! The road to Redis itself against a real Cluster: what a call and a pipeline do while their slot is elsewhere or on
//! its way. What gateways make of it is told in `topology`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Pipeline, RedisResult, Value, cmd};
use tollgate::redis::{Lane, Link, Recovery, Script, Settings, Store, Unavailable, Unobserved};

use crate::support::cluster::{Cluster, slot};
use crate::support::{RUNTIME, wait_for};

/// Nothing is owed.
struct Nothing;

#[async_trait]
impl Recovery for Nothing {
    fn owes(&self) -> bool {
        false
    }

    async fn verify(&self, link: &mut Link<'_>) -> RedisResult<()> {
        let key = link.trial_key("trial").expect("every master owns slots here");
        cmd("SET").arg(key).arg(1).arg("PX").arg(1_000).exec_async(link.connection()).await
    }

    async fn recover(&self, _: &mut Link<'_>) -> RedisResult<()> {
        Ok(())
    }
}

fn store(cluster: &Cluster) -> Arc<Store> {
    let mut settings = Settings::new(&cluster.url()).unwrap();
    settings.deadline = Duration::from_secs(1);
    let store = Store::new(settings, Box::new(Unobserved)).unwrap();
    RUNTIME.spawn(Arc::clone(&store).supervise(Vec::new(), Arc::new(Nothing)));
    store
}

fn command(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
}

fn call(store: &Arc<Store>, words: &[&str]) -> Result<Value, Unavailable> {
    let (store, command, shard) = (Arc::clone(store), command(words), store.shard(words[1].as_bytes()));
    wait_for(async move { store.call(Lane::Bodies, shard, &command).await })
}

fn pipeline(store: &Arc<Store>, commands: &[&[&str]]) -> Vec<Value> {
    let mut pipeline = Pipeline::new();
    for words in commands {
        pipeline.add_command(command(words));
    }
    let (store, shard) = (Arc::clone(store), store.shard(commands[0][1].as_bytes()));
    wait_for(async move { store.pipeline(Lane::Decisions, shard, &pipeline).await }).unwrap()
}

fn text(bytes: &str) -> Value {
    Value::BulkString(bytes.into())
}

#[test]
fn each_key_is_found_on_its_node_also_by_the_first_call_of_all() {
    let cluster = Cluster::start();
    let store = store(&cluster);
    assert!(store.is_cluster());
    for number in 0..60 {
        let key = format!("body:{number}");
        assert_eq!(call(&store, &["SET", &key, &key]), Ok(Value::Okay));
        assert_eq!(call(&store, &["GET", &key]), Ok(text(&key)));
    }
    let by_node = cluster.keys_by_node();
    assert!(by_node.values().all(|keys| keys.iter().any(|key| key.starts_with("body:"))), "{by_node:?}");
    let all = Arc::clone(&store);
    let sizes =
        wait_for(
            async move { all.ask_all(Duration::from_secs(1), Lane::Bodies, &command(&["DBSIZE"])).await },
        );
    assert_eq!(sizes.len(), 3);
    assert!(sizes.iter().all(|size| matches!(size.outcome, Ok(Value::Int(1..)))), "{sizes:?}");
    assert_eq!(store.shard(b"a:{x}:1"), store.shard(b"{x}"));
}

#[test]
fn a_slot_that_is_on_its_way_or_has_moved_is_followed_once() {
    let cluster = Cluster::start();
    let store = store(&cluster);
    let own = slot(b"{t}");
    let (from, to) = (cluster.owner_of(own), (cluster.owner_of(own) + 1) % 3);
    assert_eq!(call(&store, &["SET", "{t}:old", "1"]), Ok(Value::Okay));
    cluster.begin_move(own, to);
    assert_eq!(call(&store, &["INCR", "{t}:old"]), Ok(Value::Int(2)), "what is there is answered there");
    assert_eq!(call(&store, &["INCR", "{t}:new"]), Ok(Value::Int(1)), "what is not, at the new node");
    let values = pipeline(
        &store,
        &[&["INCR", "{t}:old"], &["INCR", "{t}:new"], &["LPUSH", "{t}:old", "x"], &["INCR", "{t}:more"]],
    );
    assert_eq!((&values[0], &values[1], &values[3]), (&Value::Int(3), &Value::Int(2), &Value::Int(1)));
    assert!(matches!(&values[2], Value::ServerError(error) if error.code() == "WRONGTYPE"), "{values:?}");
    assert_eq!(
        call(&store, &["MGET", "{t}:old", "{t}:new"]),
        Err(Unavailable::Redirected),
        "torn apart for now"
    );
    cluster.end_move(own, from, to);
    assert_eq!(
        pipeline(&store, &[&["INCR", "{t}:old"], &["INCR", "{t}:new"]]),
        [Value::Int(4), Value::Int(3)]
    );
    assert_eq!(call(&store, &["MGET", "{t}:old", "{t}:new"]), Ok(Value::Array(vec![text("4"), text("3")])));
    assert!(store.available_everywhere() && !store.degraded());
}

#[test]
fn a_script_that_a_node_has_forgotten_is_loaded_there_again() {
    let cluster = Cluster::start();
    let store = store(&cluster);
    let script = Script::new("return redis.call('INCR', KEYS[1])");
    for number in 0..9 {
        let key = format!("k{number}");
        let mut command = script.command();
        command.arg(1).arg(&key);
        let (store, shard, script) = (
            Arc::clone(&store),
            store.shard(key.as_bytes()),
            Script::new("return redis.call('INCR', KEYS[1])"),
        );
        let value = wait_for(async move { store.eval(Lane::Decisions, shard, &script, &command).await });
        assert_eq!(value, Ok(Value::Int(1)));
    }
}

#[test]
fn a_frozen_node_holds_up_nobody_elses_keys() {
    let cluster = Cluster::start();
    let store = store(&cluster);
    let (frozen, fine) = (cluster.key_on(0, "f"), cluster.key_on(1, "f"));
    assert!(call(&store, &["GET", &frozen]).is_ok() && call(&store, &["GET", &fine]).is_ok());
    cluster.node(0).pause();
    assert_eventually!(call(&store, &["GET", &frozen]) == Err(Unavailable::BreakerOpen), "its breaker opens");
    assert!(!store.available(store.shard(frozen.as_bytes())) && store.degraded());
    assert!(store.available(store.shard(fine.as_bytes())));
    assert_eq!(call(&store, &["GET", &fine]), Ok(Value::Nil));
    cluster.node(0).resume();
    assert_eventually!(call(&store, &["GET", &frozen]) == Ok(Value::Nil), "it is asked again");
    assert_eventually!(!store.degraded(), "all is well");
}
