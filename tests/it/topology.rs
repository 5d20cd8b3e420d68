//! Redis as a Cluster and as a pair under sentinels: what a gateway does while nodes are lost, masters change and
//! slots move. How a single Redis fails is told in `redis_faults`.

use crate::support::cluster::{Cluster, slot};
use crate::support::sentinel::Pair;

#[test]
fn the_kit_forms_a_cluster_and_moves_its_slots() {
    assert_eq!(slot(b"123456789"), 12_739);
    let cluster = Cluster::start_with_replicas();
    let key = cluster.key_on(0, "k");
    cluster.query::<()>(&key, redis::cmd("SET").arg(&key).arg(1));
    cluster.move_slot(slot(key.as_bytes()), 1);
    assert_eq!(cluster.owner(&key), 1);
    assert_eq!(cluster.query::<u8>(&key, redis::cmd("GET").arg(&key)), 1);
    cluster.kill(2);
    cluster.wait_for_takeover(2);
    assert_eq!(cluster.owner_of(16_000), 5);
}

#[test]
fn the_kit_forms_a_pair_that_fails_over() {
    let pair = Pair::start();
    let first = pair.current().port();
    pair.failover();
    assert_ne!(pair.current().port(), first);
}
