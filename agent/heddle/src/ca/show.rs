//! `heddle ca inspect`: what an operator needs to see, as a table or as JSON. No key, no token.

use std::io::Write;

use anyhow::Result;
use heddle_controller::ca::rotation::{Phase, State};
use heddle_controller::ca::{CaFacts, Contents, Directory};
use serde::Serialize;

use super::{InspectOptions, unix_now};
use crate::cli::{Output, table, yaml};

#[derive(Serialize)]
struct View {
    trust_domain: String,
    lifetime_max_seconds: u64,
    phase: &'static str,
    phase_since: u64,
    next_step: Option<String>,
    generations: Vec<GenerationView>,
    nodes: Vec<NodeView>,
}

#[derive(Serialize)]
struct GenerationView {
    generation: u64,
    signs: bool,
    root: CertificateView,
    intermediate: CertificateView,
}

#[derive(Serialize)]
struct CertificateView {
    subject: String,
    serial: String,
    not_before: u64,
    not_after: u64,
    #[serde(skip)]
    end: String,
}

#[derive(Serialize)]
struct NodeView {
    name: String,
    token_created: u64,
}

impl From<CaFacts> for CertificateView {
    fn from(facts: CaFacts) -> Self {
        Self {
            subject: facts.subject,
            serial: facts.serial,
            not_before: facts.not_before.as_secs(),
            not_after: facts.not_after.as_secs(),
            end: facts.not_after_text,
        }
    }
}

pub(super) fn inspect(options: &InspectOptions) -> Result<()> {
    let Contents { state, nodes, generations, .. } = Directory::new(&options.dir.dir).load()?;
    let mut views = Vec::new();
    for generation in &generations {
        views.push(GenerationView {
            generation: generation.number,
            signs: generation.number == state.active(),
            root: CaFacts::of(&generation.root)?.into(),
            intermediate: CaFacts::of(&generation.intermediate)?.into(),
        });
    }
    let view = View {
        trust_domain: state.trust_domain()?.to_string(),
        lifetime_max_seconds: state.lifetime_max().as_secs(),
        phase: state.phase().as_str(),
        phase_since: state.phase_since().as_secs(),
        next_step: next_step(&state, unix_now()),
        generations: views,
        nodes: nodes
            .all()
            .iter()
            .map(|node| NodeView { name: node.name().to_owned(), token_created: node.created().as_secs() })
            .collect(),
    };
    let text = match options.output {
        Output::Json => serde_json::to_string_pretty(&view)? + "\n",
        Output::Yaml => yaml::text(&serde_json::to_value(&view)?),
        Output::Table => render(&view),
    };
    // A closed pipe is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// What follows, and when.
pub(super) fn next_step(state: &State, now: std::time::Duration) -> Option<String> {
    let step = match state.phase() {
        Phase::Steady => return None,
        Phase::Prepared => "activate",
        Phase::Activated => "finish",
    };
    let remaining = state.remaining(now).as_secs();
    Some(if remaining == 0 { format!("{step}, now") } else { format!("{step}, in {remaining} s") })
}

fn render(view: &View) -> String {
    let mut text = format!(
        "trust domain  {}\nlifetime max  {} s\nphase         {}\n",
        view.trust_domain, view.lifetime_max_seconds, view.phase
    );
    if let Some(next) = &view.next_step {
        text.push_str(&format!("next          {next}\n"));
    }
    let mut rows = Vec::new();
    for generation in &view.generations {
        let role = if generation.signs { "signs" } else { "trusted" };
        for (what, certificate) in [("root", &generation.root), ("intermediate", &generation.intermediate)] {
            rows.push(vec![
                format!("g{}", generation.generation),
                role.to_owned(),
                what.to_owned(),
                certificate.subject.clone(),
                certificate.serial.clone(),
                certificate.end.clone(),
            ]);
        }
    }
    text.push('\n');
    text.push_str(&table::render(&["GENERATION", "ROLE", "CERTIFICATE", "SUBJECT", "SERIAL", "ENDS"], &rows));
    let rows: Vec<_> = view.nodes.iter().map(|node| vec![node.name.clone(), node.token_created.to_string()]).collect();
    text.push('\n');
    text.push_str(&table::render(&["NODE", "TOKEN MADE (UNIX)"], &rows));
    text
}
