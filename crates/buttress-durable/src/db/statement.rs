//! Statements for services that support both databases: methods of [`Tx`] and [`Db`].

use super::database::Arg;
use super::{Database, Db, DbError, Tx};

/// A type of column: `i64`, `String`, `Vec<u8>`, `Option<i64>` or `Option<String>`.
pub trait Column<D: Database>: Sized {
    /// Reads a column of a row.
    ///
    /// # Errors
    ///
    /// If the column does not exist or has another type.
    fn read(row: &D::Row, column: usize) -> Result<Self, sqlx::Error>;
}

/// A row as a tuple of up to eight columns.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// use buttress_durable::{Db, args};
///
/// # let dir = tempfile::tempdir()?;
/// let db = Db::open(dir.path().join("stock.db")).await?;
/// let rows: Vec<(String, i64)> = db.rows("SELECT 'tea', 3", args![]).await?;
/// assert_eq!(rows, [("tea".to_owned(), 3)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Columns<D: Database>: Sized {
    /// Reads the columns of a row.
    ///
    /// # Errors
    ///
    /// If a column does not exist or has another type.
    fn read(row: &D::Row) -> Result<Self, sqlx::Error>;
}

impl<D: Database> Tx<D> {
    /// Runs a statement and returns the number of changed rows.
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
    /// If the database fails. The transaction can only be rolled back then.
    pub async fn execute(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<u64, DbError> {
        self.run(sql, args).await
    }

    /// Runs a statement and returns its rows.
    ///
    /// # Errors
    ///
    /// If the database fails. The transaction can only be rolled back then.
    pub async fn rows<T: Columns<D>>(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<T>, DbError> {
        read(&self.query(sql, args).await?)
    }

    /// Runs a statement and returns its first row.
    ///
    /// # Errors
    ///
    /// If the database fails. The transaction can only be rolled back then.
    pub async fn row<T: Columns<D>>(&mut self, sql: &'static str, args: &[Arg<'_>]) -> Result<Option<T>, DbError> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }
}

impl<D: Database> Db<D> {
    /// Runs a query outside of any transaction and returns its rows.
    ///
    /// # Errors
    ///
    /// If the database fails.
    pub async fn rows<T: Columns<D>>(&self, sql: &'static str, args: &[Arg<'_>]) -> Result<Vec<T>, DbError> {
        read(&self.read(sql, args).await?)
    }

    /// Runs a query outside of any transaction and returns its first row.
    ///
    /// # Errors
    ///
    /// If the database fails.
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
