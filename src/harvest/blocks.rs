//! Contexts in blocks, made on another thread: reading and tokenizing overlap with the forward passes.

use std::sync::mpsc::{sync_channel, Receiver};
use std::thread::Scope;

use super::config::Plan;
use crate::corpus::{Context, ContextConfig, Contexts, Corpus, Place, Tokenizer};
use crate::error::{Error, Result};

/// A run of contexts. Shards are sealed, and a harvest resumes, only between blocks.
pub(super) struct Block {
    /// In corpus order.
    pub contexts: Vec<Context>,
    /// Where the next block begins.
    pub end: Place,
}

/// The blocks of a corpus, read ahead.
pub(super) struct Blocks {
    receiver: Receiver<Result<Block>>,
}

impl Blocks {
    /// Starts reading at a place.
    ///
    /// # Errors
    /// When the corpus cannot be opened.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        corpus: &Corpus,
        tokenizer: Option<&'scope Tokenizer>,
        config: ContextConfig,
        from: Place,
        plan: &Plan,
    ) -> Result<Self> {
        let mut contexts = Contexts::new(corpus, tokenizer, config, from)?;
        let most = plan.block_tokens();
        let (sender, receiver) = sync_channel(2);
        let work = move || loop {
            let block = next_block(&mut contexts, most);
            let last = !matches!(block, Ok(Some(_)));
            // A receiver that is gone has all it wants.
            if block.transpose().is_some_and(|b| sender.send(b).is_err()) || last {
                return;
            }
        };
        std::thread::Builder::new()
            .name("harvest-reader".into())
            .spawn_scoped(scope, work)
            .map_err(|e| Error::io("start a reader of", &corpus.config().source, e))?;
        Ok(Self { receiver })
    }
}

impl Iterator for Blocks {
    type Item = Result<Block>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.recv().ok()
    }
}

/// Contexts until their tokens reach `most`, so that blocks depend on the corpus and the configuration alone.
fn next_block(contexts: &mut Contexts, most: usize) -> Result<Option<Block>> {
    let mut block: Option<Block> = None;
    let mut tokens = 0;
    while tokens < most {
        let Some(context) = contexts.next().transpose()? else { break };
        tokens += context.ids.len();
        let block = block.get_or_insert_with(|| Block { contexts: Vec::new(), end: context.end });
        block.end = context.end;
        block.contexts.push(context);
    }
    Ok(block)
}
