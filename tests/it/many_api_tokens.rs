//! More API tokens than are listed: the list says that it is cut, and every one of them is judged as ever.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api_tokens::{create, done, get, ok, refused, said, text};
use crate::setup::{PATIENT, gateway};
use crate::support::gateway::ADMIN_TOKEN;
use crate::support::origin::Origin;
use crate::support::redis::Redis;

/// As many are listed.
const LISTED: usize = 100_000;
/// Written in one go.
const PIECE: usize = 5_000;
/// A gateway may take so much more memory for the list and what it read for it.
const MOST_BYTES: u64 = 300 << 20;

/// Adds tokens with the record of another one.
fn add(redis: &Redis, count: usize, model: &str) {
    let mut client = redis.client();
    let record: String = redis::cmd("GET").arg(format!("api_token:{model}")).query(&mut client).unwrap();
    let numbers: Vec<usize> = (0..count).collect();
    for piece in numbers.chunks(PIECE) {
        let (mut records, mut ids) = (redis::cmd("MSET"), redis::cmd("SADD"));
        ids.arg("api_tokens");
        for number in piece {
            let id = format!("many{number:012}");
            records.arg(format!("api_token:{id}")).arg(&record);
            ids.arg(id);
        }
        records.exec(&mut client).unwrap();
        ids.exec(&mut client).unwrap();
    }
}

#[test]
fn of_more_tokens_than_are_listed_each_is_judged_as_ever() {
    let (redis, origin) = (Redis::start(), Origin::start());
    let gateway = gateway(&text(&origin, PATIENT), &redis.url());
    let [(id, kept), (other, ended)] = [(); 2].map(|()| create(&gateway, &json!({})));
    assert_eq!(said(&get(&gateway, "/a", &kept)), ok());
    let before = gateway.process().resident_bytes();
    add(&redis, LISTED + PIECE, &id);
    let list = gateway.admin().post("/api/v1/api-tokens/list").bearer(ADMIN_TOKEN);
    let list: Value = list.within(Duration::from_secs(300)).send().json();
    let tokens = list["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), &list["complete"]), (LISTED, &json!(false)));
    assert!(list["note"].as_str().unwrap().contains("more tokens than are listed"));
    let ids: Vec<&str> = tokens.iter().map(|token| token["id"].as_str().unwrap()).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "in their order, none twice");
    let grown = gateway.process().resident_bytes().saturating_sub(before);
    assert!(grown < MOST_BYTES, "{grown} bytes more");
    // What is presented is judged by its own record, whatever is listed.
    assert_eq!(said(&get(&gateway, "/a", &kept)), ok());
    assert_eq!(said(&get(&gateway, "/a", &ended)), ok());
    done(&gateway, "disable", &json!({ "id": other }));
    assert_eq!(said(&get(&gateway, "/a", &ended)), refused("Token revoked"));
    for number in [0, 1, LISTED, LISTED + PIECE - 1] {
        let foreign = format!("tgk_many{number:012}_{}", &ended[21..]);
        assert_eq!(said(&get(&gateway, "/a", &foreign)), refused("Invalid token"), "{number}");
        let its_own = format!("tgk_many{number:012}_{}", &kept[21..]);
        assert_eq!(said(&get(&gateway, "/a", &its_own)), ok(), "{number}");
    }
    let (_, fresh) = create(&gateway, &json!({}));
    assert_eq!(said(&get(&gateway, "/a", &fresh)), ok());
}
