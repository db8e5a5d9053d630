//! Text to token ids, as the host's own tokenizer does it, with one rule for the beginning-of-sequence token.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::{Error, Result};

/// Does a document begin with the BOS token?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bos {
    /// As the tokenizer does it by itself.
    #[default]
    Tokenizer,
    /// Exactly one, put there if the tokenizer does not.
    Always,
    /// None, taken away if the tokenizer puts it there.
    Never,
}

/// A tokenizer.json with what lies beside it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    special: BTreeSet<u32>,
    /// `add_bos_token` of tokenizer_config.json, which some classes obey over tokenizer.json.
    add_bos: Option<bool>,
    sha256: String,
    /// A plain token, to decode others after.
    anchor: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("bos", &self.bos).field("special", &self.special).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// From a Hugging Face folder: tokenizer.json, and if present tokenizer_config.json, special_tokens_map.json, config.json.
    ///
    /// # Errors
    /// When tokenizer.json is missing, or a file cannot be understood.
    pub fn load(dir: &Path) -> Result<Self> {
        let read = |name: &str| match std::fs::read(dir.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", dir.join(name), e)),
        };
        let Some(tokenizer) = read("tokenizer.json")? else {
            return Err(Error::request(
                format!("{} has no tokenizer.json", dir.display()),
                "save the tokenizer in the fast format, or give the corpus as token ids (.u16, .u32, .npy)",
            ));
        };
        let (config, map, model) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?, read("config.json")?);
        Self::build(&dir.join("tokenizer.json"), &tokenizer, [config.as_deref(), map.as_deref(), model.as_deref()])
    }

    /// The built-in host's, from its embedded bytes.
    ///
    /// # Errors
    /// When the embedded bytes are damaged.
    pub fn fable() -> Result<Self> {
        Self::from_bytes(
            include_bytes!("../../datasets/fable/tokenizer.json"),
            Some(include_bytes!("../../datasets/fable/tokenizer_config.json")),
            Some(include_bytes!("../../datasets/fable/config.json")),
        )
    }

    /// From the bytes of tokenizer.json and, if there are any, of tokenizer_config.json and the model's config.json.
    ///
    /// # Errors
    /// When they cannot be understood.
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config_json: Option<&[u8]>, config_json: Option<&[u8]>) -> Result<Self> {
        Self::build(Path::new("tokenizer.json"), tokenizer_json, [tokenizer_config_json, None, config_json])
    }

    fn build(path: &Path, json: &[u8], [config, map, model]: [Option<&[u8]>; 3]) -> Result<Self> {
        let bad = |name: &str, e: String| Error::format("tokenizer", path.with_file_name(name), e, "download or save the tokenizer again");
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| bad("tokenizer.json", e.to_string()))?;
        // Both may be saved in the file; here a document is always taken whole.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad("tokenizer.json", e.to_string()))?;
        let parse = |name: &str, bytes: Option<&[u8]>| -> Result<Value> {
            bytes.map_or(Ok(Value::Null), |b| serde_json::from_slice(b).map_err(|e| bad(name, e.to_string())))
        };
        let config = parse("tokenizer_config.json", config)?;
        let map = parse("special_tokens_map.json", map)?;
        let model = parse("config.json", model)?;

        // A special token is named by its text, or by an object with its text in `content`.
        let named = |key: &str| {
            [&config, &map].into_iter().find_map(|v| {
                let token = v.get(key)?;
                inner.token_to_id(token.as_str().or_else(|| token.get("content")?.as_str())?)
            })
        };
        let numbered = |key: &str| model.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let bos = named("bos_token").or_else(|| numbered("bos_token_id"));
        let mut special: BTreeSet<u32> =
            inner.get_added_tokens_decoder().iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        special.extend(bos);
        for key in ["eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"] {
            special.extend(named(key));
        }
        match model.get("eos_token_id") {
            Some(Value::Array(ids)) => special.extend(ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok())),
            _ => special.extend(numbered("eos_token_id")),
        }
        let add_bos = config.get("add_bos_token").and_then(Value::as_bool);
        let plain = |id: &u32| !special.contains(id) && inner.decode(&[*id], false).is_ok_and(|t| !t.is_empty() && !t.contains('\u{FFFD}'));
        let anchor = inner.encode_fast("a", false).ok().and_then(|e| e.get_ids().last().copied()).filter(plain);
        Ok(Self { inner, bos, special, add_bos, sha256: hex(&Sha256::digest(json)), anchor })
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// When the tokenizer fails, or a BOS token is wanted and the tokenizer has none.
    pub fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|e| Error::request(format!("the tokenizer failed: {e}"), "check tokenizer.json and the text"))?;
        let mut ids = encoding.get_ids().to_vec();
        let wanted = match (bos, self.add_bos) {
            (Bos::Always, _) => Some(true),
            (Bos::Never, _) => Some(false),
            (Bos::Tokenizer, told) => told,
        };
        match (wanted, self.bos) {
            (Some(true), Some(bos)) if ids.first() != Some(&bos) => ids.insert(0, bos),
            (Some(false), Some(bos)) if ids.first() == Some(&bos) && !self.text_begins_with_bos(text, bos) => {
                ids.remove(0);
            }
            (Some(true), None) if bos == Bos::Always => {
                return Err(Error::config("harvest.bos", "is `always`, but the tokenizer names no BOS token", "use `tokenizer` or `never`"))
            }
            _ => {}
        }
        Ok(ids)
    }

    /// A BOS that the text itself spells out is the text's.
    fn text_begins_with_bos(&self, text: &str, bos: u32) -> bool {
        self.token(bos).is_some_and(|token| text.starts_with(&token))
    }

    /// Text of token ids.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, false)
            .map_err(|e| Error::request(format!("the tokenizer cannot decode: {e}"), "check that the ids belong to this tokenizer"))
    }

    /// What a token adds to a text: ` cat` for `Ġcat` and `▁cat`. A special token, and one that is no whole character, stands as the
    /// vocabulary spells it; an unknown id as `⟨id⟩`.
    pub fn text_of(&self, id: u32) -> String {
        let spelled = || self.token(id).unwrap_or_else(|| format!("⟨{id}⟩"));
        if self.is_special(id) {
            return spelled();
        }
        // Decoders drop the space before a first token: so another stands before it.
        let text = |ids: &[u32]| self.inner.decode(ids, false).ok();
        let before = self.anchor.and_then(|a| Some((a, text(&[a])?)));
        let own = match before {
            Some((anchor, before)) => text(&[anchor, id]).and_then(|both| both.strip_prefix(&before).map(str::to_string)),
            None => text(&[id]),
        };
        own.filter(|t| !t.is_empty() && !t.contains('\u{FFFD}')).unwrap_or_else(spelled)
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Is this a special token (BOS, end, padding, unknown, ...)?
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The special tokens, ascending.
    pub fn special_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.special.iter().copied()
    }

    /// The BOS token, if the tokenizer or the model names one. It may be 0.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// SHA-256 of tokenizer.json, hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words by white space; `template`: does tokenizer.json itself put `<s>` first?
    fn tokenizer(template: bool, config: &str) -> Tokenizer {
        let special = |id: u32, content: &str| {
            format!(
                r#"{{"id":{id},"content":"{content}","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}"#
            )
        };
        let processor = if template {
            r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
                "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
                "special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}}"#
        } else {
            "null"
        };
        let json = format!(
            r#"{{"version":"1.0","truncation":{{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}},"padding":null,
                "added_tokens":[{},{}],"normalizer":null,"pre_tokenizer":{{"type":"WhitespaceSplit"}},"post_processor":{processor},
                "decoder":null,"model":{{"type":"WordLevel","vocab":{{"<s>":0,"<unk>":1,"a":2,"b":3,"c":4}},"unk_token":"<unk>"}}}}"#,
            special(0, "<s>"),
            special(1, "<unk>")
        );
        Tokenizer::from_bytes(json.as_bytes(), Some(config.as_bytes()), Some(br#"{"eos_token_id":[4]}"#)).unwrap()
    }

    #[test]
    fn bos_follows_the_tokenizer_unless_told() {
        let named = r#"{"bos_token":{"content":"<s>"}}"#;
        let (with, without) = (tokenizer(true, named), tokenizer(false, named));
        // BOS is id 0 here, and the saved truncation to two tokens is not obeyed.
        assert_eq!(with.encode("a b c", Bos::Tokenizer).unwrap(), [0, 2, 3, 4]);
        assert_eq!(without.encode("a b c", Bos::Tokenizer).unwrap(), [2, 3, 4]);
        for t in [&with, &without] {
            assert_eq!(t.encode("a b", Bos::Always).unwrap(), [0, 2, 3]);
            assert_eq!(t.encode("a b", Bos::Never).unwrap(), [2, 3]);
            assert_eq!(t.bos(), Some(0));
        }
        assert_eq!(without.encode("<s> a", Bos::Never).unwrap(), [0, 2], "a BOS in the text is the text's");
        let told = tokenizer(false, r#"{"bos_token":"<s>","add_bos_token":true}"#);
        assert_eq!(told.encode("a", Bos::Tokenizer).unwrap(), [0, 2]);
        assert!(matches!(tokenizer(false, "{}").encode("a", Bos::Always), Err(Error::Config { .. })));
    }

    #[test]
    fn a_token_has_the_text_it_adds() {
        let t = tokenizer(true, "{}");
        assert_eq!([t.text_of(3), t.text_of(0), t.text_of(99)], [" b", "<s>", "⟨99⟩"].map(String::from));
        let fable = Tokenizer::fable().unwrap();
        let ids = fable.encode("the cat", Bos::Never).unwrap();
        assert_eq!(ids.iter().map(|&id| fable.text_of(id)).collect::<String>().trim(), "the cat");
    }

    #[test]
    fn specials_come_from_everywhere() {
        let t = tokenizer(true, r#"{"pad_token":"c"}"#);
        assert_eq!(t.special_ids().collect::<Vec<_>>(), [0, 1, 4]);
        assert!(!t.is_special(2) && t.is_special(4));
        assert_eq!(t.token(3).as_deref(), Some("b"));
        assert!(Tokenizer::from_bytes(b"{}", None, None).is_err());
    }
}
