// A picture that is dropped or chosen becomes the value of the component: its name, and its bytes as a data URL.
const take = (file) => {
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => { props.value = { name: file.name, data: reader.result }; };
  reader.readAsDataURL(file);
};
element.addEventListener("change", (event) => take(event.target.files[0]));
element.addEventListener("dragover", (event) => { event.preventDefault(); element.classList.add("over"); });
element.addEventListener("dragleave", () => element.classList.remove("over"));
element.addEventListener("drop", (event) => {
  event.preventDefault();
  element.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
