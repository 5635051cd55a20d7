//! duroxide on its SQLite provider, with its defaults: an orchestration with one activity.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use duroxide::providers::sqlite::SqliteProvider;
use duroxide::runtime::Runtime;
use duroxide::runtime::registry::ActivityRegistry;
use duroxide::{
    ActivityContext, Client, OrchestrationContext, OrchestrationRegistry, OrchestrationStatus,
};

use super::{Figure, Store, payload};

const PATIENCE: Duration = Duration::from_secs(120);

pub struct Duroxide {
    client: Client,
    /// None where nothing is to be executed.
    _runtime: Option<Arc<Runtime>>,
}

impl Duroxide {
    pub async fn open(dir: &Path, figure: Figure) -> Self {
        let path = dir.join("duroxide");
        // Its provider opens a file that is there.
        std::fs::File::create(&path).expect("a file");
        let url = format!("sqlite:{}", path.display());
        let provider = SqliteProvider::new(&url, None).await.expect("a provider");
        let provider = Arc::new(provider);
        let runtime = if figure == Figure::Lifecycle {
            Some(run(Arc::clone(&provider)).await)
        } else {
            None
        };
        Self {
            client: Client::new(provider),
            _runtime: runtime,
        }
    }

    async fn ask(&self, instance: &str, number: u64) {
        let input = payload(number).to_string();
        let asked = self.client.start_orchestration(instance, "one", input);
        asked.await.expect("an orchestration");
    }
}

async fn run(provider: Arc<SqliteProvider>) -> Arc<Runtime> {
    let activities = ActivityRegistry::builder()
        .register("work", |_: ActivityContext, input: String| async move {
            Ok(input)
        })
        .build();
    let orchestrations = OrchestrationRegistry::builder()
        .register(
            "one",
            |cx: OrchestrationContext, input: String| async move {
                cx.schedule_activity("work", input).await
            },
        )
        .build();
    Runtime::start_with_store(provider, activities, orchestrations).await
}

#[async_trait::async_trait]
impl Store for Duroxide {
    async fn append(&self, _caller: usize, _number: u64) {
        unreachable!("it has no append from outside");
    }

    async fn start(&self, caller: usize, number: u64) {
        let instance = format!("p-{caller}-{number}");
        self.ask(&instance, number).await;
    }

    async fn lifecycle(&self, caller: usize, number: u64) {
        let instance = format!("p-{caller}-{number}");
        self.ask(&instance, number).await;
        let status = self
            .client
            .wait_for_orchestration(&instance, PATIENCE)
            .await;
        let status = status.expect("an outcome");
        assert!(
            matches!(status, OrchestrationStatus::Completed { .. }),
            "{status:?}"
        );
    }
}
