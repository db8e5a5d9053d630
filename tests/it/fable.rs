//! The shipped host folder fits the built-in language: tokenizer, shape, size.

use std::path::{Path, PathBuf};

use lapidary::corpus::fable;
use tokenizers::Tokenizer;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/fable")
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

#[test]
fn tokenizer_gives_a_storys_own_ids() {
    let tokenizer = Tokenizer::from_file(folder().join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), fable::vocabulary().len());
    for (id, word) in fable::vocabulary().iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(word), Some(id as u32), "{word}");
    }
    for index in 0..300 {
        let story = fable::story(7, index);
        let text = fable::text(&story);
        assert_eq!(tokenizer.encode(text.as_str(), true).unwrap().get_ids(), story.tokens);
        assert_eq!(tokenizer.decode(&story.tokens, true).unwrap(), text);
    }
}

#[test]
fn ordinary_spelling_is_understood() {
    let tokenizer = Tokenizer::from_file(folder().join("tokenizer.json")).unwrap();
    let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
    assert_eq!(ids("Tom said, \"I want the kite.\""), fable::encode("tom said , \" i want the kite . \"").unwrap());
    assert_eq!(ids("tom xyzzy"), [fable::BOS, fable::encode("tom").unwrap()[1], fable::UNK]);
}

#[test]
fn config_and_weights_fit_the_language() {
    let config = json("config.json");
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["vocab_size"], fable::vocabulary().len());
    assert_eq!((config["bos_token_id"].as_u64(), config["eos_token_id"].as_u64()), (Some(1), Some(2)));
    assert!(config["max_position_embeddings"].as_u64().unwrap() as usize > fable::MAX_TOKENS);
    let bytes = std::fs::read(folder().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = tensors.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!(embedding.shape(), [fable::vocabulary().len(), config["hidden_size"].as_u64().unwrap() as usize]);
    // Nine tensors per layer, the embedding and the final norm; the head is tied.
    assert_eq!(tensors.len(), 9 * config["num_hidden_layers"].as_u64().unwrap() as usize + 2);
}

#[test]
fn the_folder_is_small() {
    let files = std::fs::read_dir(folder()).unwrap().map(|f| f.unwrap().metadata().unwrap().len());
    assert!(files.sum::<u64>() < 3_000_000);
}
