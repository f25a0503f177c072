//! Statements of a service that runs on either database: what [`Tx`] and [`Db`] offer besides the connection itself.

use super::database::Arg;
use super::{Database, Db, DbError, Tx};

/// What a column is read as: `i64`, `String`, `Vec<u8>`, and the `Option` of the first two.
pub trait Column<D: Database>: Sized {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// If the column is not there, or of another type.
    fn read(row: &D::Row, column: usize) -> Result<Self, sqlx::Error>;
}

/// A row: a tuple of up to eight columns.
pub trait Columns<D: Database>: Sized {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// If a column is not there, or of another type.
    fn read(row: &D::Row) -> Result<Self, sqlx::Error>;
}

impl<D: Database> Tx<D> {
    /// Runs a statement; the number of rows that it changed.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// use buttress_durable::{Database, Db, DbError, args};
    ///
    /// async fn sell<D: Database>(db: &Db<D>, sku: &str, pieces: i64) -> Result<Option<i64>, DbError> {
    ///     let mut tx = db.begin().await?;
    ///     let sql = "UPDATE stock SET pieces = pieces - $1 WHERE sku = $2 AND pieces >= $1 RETURNING pieces";
    ///     let left: Option<(i64,)> = tx.row(sql, args![pieces, sku]).await?;
    ///     tx.commit().await?;
    ///     Ok(left.map(|(pieces,)| pieces))
    /// }
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let db = Db::open(dir.path().join("stock.db")).await?;
    /// let mut tx = db.begin().await?;
    /// tx.execute("CREATE TABLE stock (sku TEXT PRIMARY KEY, pieces BIGINT NOT NULL)", args![]).await?;
    /// tx.execute("INSERT INTO stock (sku, pieces) VALUES ($1, $2)", args!["tea", 3]).await?;
    /// tx.commit().await?;
    /// assert_eq!(sell(&db, "tea", 2).await?, Some(1));
    /// assert_eq!(sell(&db, "tea", 2).await?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the database says; on PostgreSQL the transaction is then of no use.
    pub async fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, DbError> {
        self.faults.statement(sql).await;
        Ok(D::execute(self, sql, args).await?)
    }

    /// Runs a statement; the rows that it returns.
    ///
    /// # Errors
    ///
    /// What the database says; on PostgreSQL the transaction is then of no use.
    pub async fn rows<T: Columns<D>>(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<T>, DbError> {
        self.faults.statement(sql).await;
        read(&D::fetch(self, sql, args).await?)
    }

    /// Runs a statement; the first row that it returns.
    ///
    /// # Errors
    ///
    /// What the database says; on PostgreSQL the transaction is then of no use.
    pub async fn row<T: Columns<D>>(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Option<T>, DbError> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }
}

impl<D: Database> Db<D> {
    /// Reads outside of any transaction.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn rows<T: Columns<D>>(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<T>, DbError> {
        read(&self.read(sql, args).await?)
    }

    /// Reads the first row outside of any transaction.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn row<T: Columns<D>>(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Option<T>, DbError> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }
}

fn read<D: Database, T: Columns<D>>(rows: &[D::Row]) -> Result<Vec<T>, DbError> {
    rows.iter().map(|row| Ok(T::read(row)?)).collect()
}

macro_rules! column {
    ($($type:ty => $read:ident),+ $(,)?) => {$(
        impl<D: Database> Column<D> for $type {
            fn read(row: &D::Row, column: usize) -> Result<Self, sqlx::Error> {
                D::$read(row, column)
            }
        }
    )+};
}

column!(
    i64 => int,
    Option<i64> => maybe_int,
    String => text,
    Option<String> => maybe_text,
    Vec<u8> => blob,
);

macro_rules! columns {
    ($($name:ident = $index:tt),+) => {
        impl<D: Database, $($name: Column<D>),+> Columns<D> for ($($name,)+) {
            fn read(row: &D::Row) -> Result<Self, sqlx::Error> {
                Ok(($($name::read(row, $index)?,)+))
            }
        }
    };
}

columns!(A = 0);
columns!(A = 0, B = 1);
columns!(A = 0, B = 1, C = 2);
columns!(A = 0, B = 1, C = 2, E = 3);
columns!(A = 0, B = 1, C = 2, E = 3, F = 4);
columns!(A = 0, B = 1, C = 2, E = 3, F = 4, G = 5);
columns!(A = 0, B = 1, C = 2, E = 3, F = 4, G = 5, H = 6);
columns!(A = 0, B = 1, C = 2, E = 3, F = 4, G = 5, H = 6, I = 7);
