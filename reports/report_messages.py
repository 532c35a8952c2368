"""The texts of the report itself, in both languages."""

from toushi.probe.base.bilingual_text import Bilingual

REPORT = Bilingual(en="Toushi report", zh="透视报告")
QUESTION = Bilingual(en="Question", zh="问题")
METHOD = Bilingual(en="Method", zh="方法")
FINDING = Bilingual(en="Finding", zh="结论")
FIGURES = Bilingual(en="Figures", zh="图")
FIGURE = Bilingual(en="Figure", zh="图")
TABLES = Bilingual(en="Tables", zh="表")
PROVENANCE = Bilingual(en="Provenance", zh="来历")
CONTENTS = Bilingual(en="Contents", zh="目录")
MADE_AGAIN = Bilingual(en="Made again by", zh="重新生成")
ROWS_LEFT_OUT = Bilingual(
    en="The first {some} of {all} rows; all are in {file}", zh="共 {all} 行，此处为前 {some} 行；全部在 {file}"
)
DOWNLOAD = Bilingual(en="download CSV", zh="下载 CSV")

VERDICTS = {
    "supported": Bilingual(en="supported", zh="得到支持"),
    "refuted": Bilingual(en="refuted", zh="被推翻"),
    "undecided": Bilingual(en="undecided", zh="未能判定"),
    "measured": Bilingual(en="measured", zh="已测得"),
}

NOT_WHOLE = Bilingual(en="not finished", zh="未完成")
UNFINISHED = Bilingual(
    en="This run is not finished: {done} of its {all} jobs are done, so there is no finding, figure or table yet. "
    "Run the same command again to finish it.",
    zh="此次运行尚未完成：{all} 个任务中已完成 {done} 个，因此还没有结论、图与表。再执行一次同样的命令即可继续。",
)
MIXED = Bilingual(
    en="Its jobs were computed with {count} versions of the code. Jobs from before a change were not computed again.",
    zh="各任务由 {count} 个版本的代码算出：改动之前完成的任务没有重算。",
)
FAILED = Bilingual(en="Jobs that failed: {jobs}", zh="失败的任务：{jobs}")
NO_MODULE = Bilingual(
    en="The study {name} is not installed here, so there are no figures. The tables follow.",
    zh="这里没有实验 {name}，因此没有插图。表格如下。",
)
TRACE_UNFINISHED = Bilingual(
    en="This run did not finish: {done} of {all} steps were recorded.",
    zh="这次采样没有完成：共 {all} 步，记录了 {done} 步。",
)
NO_STEP = Bilingual(en="No step was recorded, so there is no figure.", zh="没有记录任何一步，所以没有图。")
NO_WORD = Bilingual(en="No word was recorded, so there is no figure by word.", zh="没有记录任何词，所以没有按词的图。")

TRACE = Bilingual(en="Where the image attended to each word", zh="图像的哪些部分关注每个词")
WORDS = Bilingual(
    en="The picture, and a heat map of the attention to each word. All maps have one scale. The number beside a word is "
    "its share of all the attention of the image's cells.",
    zh="图像，以及图像对每个词的注意力热力图。所有热力图用同一标尺。词旁的百分数是该词在图像全部注意力中的占比。",
)
LAYERS = Bilingual(
    en='"{word}": where each layer (row) attended to it at each step (column).',
    zh="“{word}”：每一层（行）在每一步（列）关注它的位置。",
)
LAYERS_OF_SUM = Bilingual(
    en='"{word}": where each layer (row) attended to it, mean over all steps.',
    zh="“{word}”：每一层（行）关注它的位置，各步平均。",
)
NARROWEST = Bilingual(en="Its map is the most concentrated of all words.", zh="所有词中，它的热力图最集中。")
TIMELINE = Bilingual(
    en="The share of the attention that each word got at each step.", zh="每个词在每一步的注意力占比。"
)
TOKENS = Bilingual(
    en="Each token and its share of the attention. All shares sum to 1.",
    zh="每个词元及其注意力占比。全部占比之和为 1。",
)

# Fields of manifests.
FACTS = {
    "config": Bilingual(en="configuration", zh="配置"),
    "config_sha256": Bilingual(en="hash of the configuration", zh="配置的哈希"),
    "seeds": Bilingual(en="seeds", zh="随机种子"),
    "seed": Bilingual(en="seed", zh="随机种子"),
    "weights": Bilingual(en="weights and data", zh="权重与数据"),
    "versions": Bilingual(en="versions", zh="版本"),
    "git": Bilingual(en="commit", zh="提交"),
    "code_sha256": Bilingual(en="hash of the study's code", zh="实验代码的哈希"),
    "hardware": Bilingual(en="hardware", zh="硬件"),
    "threads": Bilingual(en="threads per process", zh="每进程线程数"),
    "argv": Bilingual(en="command as given", zh="当时的命令"),
    "jobs": Bilingual(en="jobs", zh="任务"),
    "time": Bilingual(en="time computed", zh="计算时间"),
    "concluded": Bilingual(en="time of the conclusion", zh="得出结论的时间"),
    "may_differ": Bilingual(en="reproducibility", zh="可重现性"),
    "tables": Bilingual(en="hashes of the tables", zh="表格的哈希"),
    "prompt": Bilingual(en="prompt", zh="提示词"),
    "negative_prompt": Bilingual(en="negative prompt", zh="负向提示词"),
    "model": Bilingual(en="model", zh="模型"),
    "steps": Bilingual(en="steps", zh="步数"),
    "size": Bilingual(en="size (height × width)", zh="尺寸（高×宽）"),
    "guidance": Bilingual(en="guidance", zh="引导强度"),
    "sampler": Bilingual(en="sampler", zh="采样器"),
    "device": Bilingual(en="device", zh="设备"),
    "dtype": Bilingual(en="number type", zh="数值类型"),
    "kernel": Bilingual(en="attention kernel", zh="注意力内核"),
    "heat_map": Bilingual(en="average of the maps", zh="热力图的平均方法"),
    "keep": Bilingual(en="keep", zh="保留"),
    "edits": Bilingual(en="edits", zh="干预"),
    "segmenter": Bilingual(en="segmenter", zh="分词器"),
}
