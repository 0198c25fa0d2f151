//! What the commands answer.

use serde_json::json;

use super::*;

fn fa(words: &str) -> Reply {
    run(words.split_whitespace().map(str::to_owned).collect())
}

/// The answer, which must be JSON.
fn data(reply: &Reply) -> Value {
    serde_json::from_str(&reply.out).unwrap_or_else(|error| panic!("{error}: {}{}", reply.out, reply.err))
}

#[test]
fn info_knows_the_machine() {
    let reply = fa("info --json --threads 3");
    assert_eq!((reply.code, reply.err.as_str()), (0, ""));
    let found = data(&reply);
    assert_eq!(found["version"], info::version());
    assert_eq!(found["threads"], 3);
    // Whatever the machine, plain code runs on it and takes every type; and all shapes get a plan.
    let plain = found["kernels"].as_array().and_then(|kernels| kernels.last()).expect("kernels");
    assert_eq!((&plain["isa"], &plain["prefill"]), (&json!("scalar"), &json!("f32")));
    let all = [
        "f32", "f16", "bf16", "i8", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "f8_e4m3", "f8_e5m2",
        "u8", "q15",
    ];
    assert_eq!(plain["kv_types"], json!(all));
    assert_eq!(plain["allowed"], true);
    assert_eq!(found["plans"].as_array().map(Vec::len), Some(info::shapes().len()));
    let text = fa("info").out;
    for word in ["CPU ", "caches ", "scalar", "prefill", "decode", "workspace"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[test]
fn check_explains_prompts_and_generation() {
    let reply = fa("check --heads 32/8 --len 512 --dim 128 --causal --threads 2 --json");
    let prompt = data(&reply);
    assert_eq!((reply.code, &prompt["accepted"]), (0, &json!(true)));
    assert_eq!(prompt["path"], "prefill");
    assert_eq!(prompt["kv_bytes"], 2 * 8 * 512 * 128 * 4);
    assert_eq!(prompt["threads"], 2);
    let token = data(&fa(
        "check --heads 32/8 --len-q 1 --len-kv=8192 --dim 128 --kv q8_0 --page 16 --threads 2 --json",
    ));
    assert_eq!(token["path"], "decode");
    assert_eq!(token["kv_bytes"], 2 * 8 * 8192 * 4 * 34);
    let bytes = |name: &str| token["workspace_bytes"][name].as_u64().expect("a number");
    assert!(bytes("one_thread") < bytes("all_threads"));
    // The text says the same, and begins with what fa_attention_check says.
    let text = fa("check --len 1/100 --threads 1").out;
    assert!(text.starts_with("accepted: ") && text.contains("decode (few query rows"), "{text}");
    assert!(text.contains("tiles      1 query heads x 1 rows x 100 keys"), "{text}");
}

#[test]
fn check_takes_every_option() {
    let words = "check --batch 2 --heads 4/2 --len 40/300 --dim 64/32 --dtype bf16 --kv i8 --out f16 --scales token \
                 --token-first --window 10/2 --softcap 30 --mask bool --alibi --sinks --lse --precise --blocks 32/64 \
                 --threads 4 --isa scalar --json";
    let reply = fa(words);
    assert_eq!(reply.code, 0, "{}{}", reply.out, reply.err);
    let found = data(&reply);
    assert_eq!((&found["isa"], &found["family"]), (&json!("scalar"), &json!("f32")));
    assert_eq!((&found["tiles"]["rows"], &found["tiles"]["keys"]), (&json!(32), &json!(64)));
    for known in check::KNOWN {
        assert!(
            words.contains(known.name)
                || known.name.starts_with("--len")
                || ["--causal", "--page", "--fast"].contains(&known.name)
        );
    }
    assert_eq!(fa("check --dtype i8 --fast").code, 0);
    let reply = fa("check --dtype i8 --fast --precise --json");
    assert_eq!((reply.code, &data(&reply)["status"]), (1, &json!("FA_ERR_RESERVED")));
    for scales in ["tensor", "head", "token", "channel"] {
        assert_eq!(fa(&format!("check --dtype i8 --scales {scales}")).code, 0);
        assert_eq!(fa(&format!("check --dtype f8_e4m3 --kv u8 --scales {scales}")).code, 0);
    }
}

#[test]
fn check_says_what_is_refused_and_why() {
    let reply = fa("check --heads 5/2 --json");
    let refused = data(&reply);
    assert_eq!((reply.code, &refused["status"]), (1, &json!("FA_ERR_SHAPE")));
    assert!(refused["why"].as_str().is_some_and(|why| why.contains("heads")), "{}", reply.out);
    for kv in ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"] {
        let reply = fa(&format!("check --dim 33 --kv {kv}"));
        assert_eq!(reply.code, 1);
        assert!(reply.out.starts_with("refused, FA_ERR_"), "{}", reply.out);
        assert_eq!(fa(&format!("check --dim 64 --len-q 1 --kv {kv}")).code, 0, "{kv}");
    }
    for (words, status) in [
        ("--softcap -1", "FA_ERR_SOFTCAP"),
        ("--window -2", "FA_ERR_WINDOW"),
        ("--dim 0", "FA_ERR_ZERO_EXTENT"),
        ("--len -1", "FA_ERR_SHAPE"),
        ("--heads 1 --len 4611686018427387904", "FA_ERR_OVERFLOW"),
    ] {
        let reply = fa(&format!("check {words} --json"));
        assert_eq!((reply.code, &data(&reply)["status"]), (1, &json!(status)), "{words}");
    }
}

#[test]
fn what_is_not_understood_is_2_and_on_stderr() {
    for words in [
        "",
        "frobnicate",
        "info --frobnicate",
        "info --json=1",
        "check --len",
        "check --len many",
        "check --dtype f64",
        "check --isa mmx",
        "check --threads 0",
        "check stray",
        "check --page 1 --len-kv 99999999999",
        "bench frobnicate",
        "bench len=x",
        "bench len",
        "bench --len x",
        "bench --len",
        "bench --causal=1",
        "bench seconds=-1",
        // Its rival needs what this program goes without.
        "bench rival",
    ] {
        let reply = fa(words);
        assert_eq!((reply.code, reply.out.as_str()), (2, ""), "{words}");
        assert!(reply.err.contains("fa"), "{words}: {}", reply.err);
    }
    assert!(fa("check --dtype f64").err.contains("none of f32, f16, bf16, i8, q8_0, q4_0"));
}

#[test]
fn every_command_has_help() {
    for (words, word) in [
        ("help", "usage: fa info"),
        ("--help", "fa bench"),
        ("info --help", "--threads N"),
        ("check -h", "--heads N/KV"),
        ("bench --help", "floors|layers"),
    ] {
        let reply = fa(words);
        assert_eq!((reply.code, reply.err.as_str()), (0, ""), "{words}");
        assert!(reply.out.contains(word), "{words}: {}", reply.out);
    }
    assert_eq!(fa("--version").out, format!("fa {}\n", env!("CARGO_PKG_VERSION")));
}

/// The benchmark itself, on a shape that takes no time, into a file.
#[test]
fn bench_measures() {
    let file = std::env::temp_dir().join(format!("fa-bench-{}.json", std::process::id()));
    let measured = |json: &str| {
        fa(&format!("bench --heads 1 --len 8 dim=8 --seconds 0 --isa scalar --threads 1 --json={json}"))
    };
    let reply = measured(&file.to_string_lossy());
    assert_eq!(reply.code, 0, "{}", reply.err);
    let text = std::fs::read_to_string(&file).expect("the file was written");
    std::fs::remove_file(&file).expect("it is ours");
    let lines: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&lines[0]["shape"], &lines[0]["isa"]), (&json!("1 x 8 x 8 x 8"), &json!("scalar")));
    assert!(lines[0]["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{text}");
    assert_eq!(measured("/nonexistent/x").code, 1);
}
