//! Trains a tiny backbone on drawn portraits for 20 steps and prints the loss.

use candle_core::Device;
use selfsame_checkpoint::RunLock;
use selfsame_data::{OpenOptions, open};
use selfsame_models::{Arch, ModelConfig};
use selfsame_train::{
    MetricsLine, Observer, OptimConfig, Progress, Run, RunConfig, RunFacts, StopFlag, TrainConfig,
    train,
};

struct Print;

impl Observer for Print {
    fn started(&mut self, facts: &RunFacts) {
        eprintln!(
            "{} images, a uniform guess has loss {:.3}",
            facts.images, facts.uniform_loss
        );
    }
    fn stepped(&mut self, _: &Progress) {}
    fn logged(&mut self, line: &MetricsLine) {
        match line {
            MetricsLine::Step(line) => eprintln!("step {:>3}: loss {:.4}", line.step, line.loss),
            MetricsLine::Eval(line) => eprintln!("k-NN on {}: {:?}", line.label, line.knn),
            MetricsLine::Views(line) => eprintln!("views: {:.1} %", line.view_auc),
        }
    }
    fn note(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = RunConfig {
        model: ModelConfig {
            arch: Arch::VitTiny,
            patch_size: 8,
            image_size: 32,
            embed_dim: 64,
            depth: 2,
            num_heads: 2,
            ..ModelConfig::default()
        },
        optim: OptimConfig {
            warmup_epochs: 1,
            ..OptimConfig::default()
        },
        train: TrainConfig {
            epochs: 2,
            log_every_steps: 5,
            ..TrainConfig::default()
        },
        ..RunConfig::default()
    };
    config.objective.warmup_teacher_temp_epochs = 0;
    config.augment.global_size = 32;
    config.augment.local_size = 16;
    config.augment.local_crops = 2;
    config.head.out_dim = 64;
    let dir = std::env::temp_dir().join(format!("selfsame-pretrain-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let _lock = RunLock::acquire(&dir)?;
    let run = Run {
        config: &config,
        config_text: "",
        run_dir: &dir,
        device: &Device::Cpu,
        train: open(
            "synthetic:portraits?count=320&seed=0",
            &OpenOptions::default(),
        )?,
        val: None,
        capture_step: None,
        init: None,
        accept_data_change: false,
        stop: &StopFlag::default(),
    };
    let outcome = train(&run, &mut Print)?;
    eprintln!("{outcome:?}; checkpoints are in {}", dir.display());
    Ok(())
}
