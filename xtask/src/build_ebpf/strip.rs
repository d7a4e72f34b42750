//! Leaves out of an ELF object what the kernel does not read: the DWARF sections.

use anyhow::{Context as _, Result};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// The object without `.debug_*` and their relocations; `.BTF` and `.BTF.ext` stay.
pub(super) fn debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("read the built object")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete = name.starts_with(b".debug_");
    }
    // LLVM keeps the names of sections and of symbols in one table, the writer wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    // Relocations of type information against deleted sections' symbols go with them.
    builder.delete_orphans();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("write the stripped object")?;
    Ok(stripped)
}
